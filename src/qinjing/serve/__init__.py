"""The service: what a hospital's people reach with a browser or a program, over one port.

`app.create_app` puts the routes together, `listen.listen` opens the port. FastAPI and uvicorn come
with the extra `qinjing[serve]`; nothing below this room needs them.

Rules that every route keeps:

* Whoever asks shows a token, or the cookie that was given for one (`session.bearer`). A patient's
  token is bound to one patient; `Token.confine` stands before every look at a patient.
* A patient is named in the body of a request, never in its address, which proxies keep.
* What is logged names no patient, and repeats nothing that was sent.
"""
