"""The page at `/`: chat and live figures, in plain files that work offline.

The page itself is the same on every server and names nothing of this one, so it is served without a key; everything it
shows comes from routes that ask for one: /v1/chat/completions (scope inference) and /dashboard/live (scope metrics).
"""

from penstock.serve.dashboard.routes import PAGES, live_router, page_router

__all__ = ["PAGES", "live_router", "page_router"]
