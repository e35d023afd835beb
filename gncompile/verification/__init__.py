"""Is it right for this model: against `torch.func`, and against values of many digits."""
