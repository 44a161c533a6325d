"""The model at work for others: an HTTP API that speaks OpenAI's, with limits, metrics and a way to end well.

`worker` owns the model, `service` answers what the routes in `app` ask, `gate` lets requests in, `server` runs
it all. What the API needs of a model is the protocol in `backend`, of documents that in `searchers`.
"""
