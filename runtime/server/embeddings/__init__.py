"""`POST /v1/embeddings`: vectors of pages and queries, over the models that make them."""
