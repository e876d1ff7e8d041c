"""The settings of a run: one typed config, read from Flower's flat run config.

Keys are in kebab case, and every error names its key. The server and the sites read the same keys; settings of
a single site, such as its folder, are in its node config.
"""

from .form import Form
from .run_config import KEYS, RunConfigValue, defaults, first_error, flatten, keys_of, read_config
from .settings import Augment, Config, Mix

__all__ = ["KEYS", "Augment", "Config", "Form", "Mix", "RunConfigValue", "defaults", "first_error", "flatten"]
__all__ += ["keys_of", "read_config"]
