"""Processes that load a trained model to answer one request.

export: export as safetensors or as a Hugging Face folder.
profile: memory and operations of a model, measured on fake tensors.
requests: start of such a process from one without torch.
trained: the model with the weights of a checkpoint.
"""
