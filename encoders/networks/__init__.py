"""Networks: backbones, heads, and the model they form."""
