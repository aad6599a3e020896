"""Bundles on the Hugging Face Hub, both ways. huggingface_hub is imported when it is needed, and not before."""
