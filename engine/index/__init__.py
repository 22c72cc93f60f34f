"""What search reads: LanceDB is the truth, FAISS the cache."""
