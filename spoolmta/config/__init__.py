"""TOML files to one frozen `model.Config`, or to every error in them at once, each with file, line and key path.

`values` knows what values look like, `lines` on which line a key stands, `keys` which keys there are, `files` how
several files become one tree, `load` how the tree becomes the configuration.
"""

from spoolmta.config.bounces import shipped as shipped_bounces
from spoolmta.config.keys import known_keys, parse_setting, unparse
from spoolmta.config.load import load
from spoolmta.config.values import parse_duration

__all__ = ["known_keys", "load", "parse_duration", "parse_setting", "shipped_bounces", "unparse"]
