"""The model at work for others: an HTTP API that speaks OpenAI's, with limits, metrics and an orderly end.

`worker` owns the model, `service` answers what the routes in `app` and `chat` ask, `gate` lets requests in,
`server` runs it all. What the API needs of a model is the protocol in `backend`, of documents that in
`searchers`.
"""
