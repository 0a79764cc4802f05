"""The base of all packages: settings, errors for users, and the classes that a config names. Imports no torch."""

from augment.base.errors import UserError
from augment.base.plugins import PluginError, import_class, is_import_path
from augment.base.registry import Component, Registry, matching
from augment.base.settings import VALIDATION_PASSES, Settings, error_at, is_deferred
from augment.base.suggestions import did_you_mean

__all__ = [
    "VALIDATION_PASSES",
    "Component",
    "PluginError",
    "Registry",
    "Settings",
    "UserError",
    "did_you_mean",
    "error_at",
    "import_class",
    "is_deferred",
    "is_import_path",
    "matching",
]
