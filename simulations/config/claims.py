"""The claims that have a name; what they are: `simulations.tables.claim_file`."""

from pathlib import Path

from sparcl_core.plugins.named_files import NamedFiles

CLAIMS = NamedFiles(noun="claim", group="sparcl.claims", folder=Path(__file__).parents[1] / "claims")
