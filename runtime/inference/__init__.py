"""Running the graphs: sessions, KV caches, embeddings."""
