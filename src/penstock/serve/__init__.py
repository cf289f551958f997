"""HTTP in front of a running service: the OpenAI wire format, errors, keys, metrics.

Read in this order: `app.py` (what is connected to what), `chat.py` (one endpoint from body to bytes), `generation.py`
(a prompt becoming tokens becoming text), `answer.py` (one ASGI answer, streamed or whole). The rest is small:
`schema.py` what may be asked, `answer_plan.py` which grammar an answer obeys and how it is read (`tools/`,
`reasoning.py`), `errors.py` how refusals look, `edge.py` and `auth.py` who gets in, `metrics/` what is counted,
`server.py` the process around it.
"""
