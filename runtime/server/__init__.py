"""An HTTP server that speaks OpenAI's protocol, over the schedulers of `runtime.scheduling`."""
