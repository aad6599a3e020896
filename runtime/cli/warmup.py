"""The command `warmup`."""

from __future__ import annotations

from rich.markup import escape

from . import flags
from .console import messages


def warmup(
    bundle: flags.Bundle, *, provider: flags.Provider = "tensorrt", provider_option: flags.ProviderOptions = None
) -> None:
    """Build what a provider needs for a bundle, once: TensorRT's engines, which take minutes."""
    from ..providers.load_options import LoadOptions
    from ..providers.options import parse
    from ..warmup import warmup as run

    options = LoadOptions(provider, provider_options=parse(provider_option))
    with messages.status("warm up") as status:
        folder = run(bundle, options, lambda step: status.update(escape(step)))
    messages.print(f"engines are in [bold]{escape(str(folder))}[/]")
