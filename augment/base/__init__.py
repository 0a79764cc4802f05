"""The base of all packages: settings, errors for users, and the classes that a config names. Imports no torch."""

from augment.base.errors import UserError
from augment.base.plugins import PluginError, import_class, is_import_path
from augment.base.registry import Component, Registry, matching
from augment.base.settings import VALIDATION_PASSES, Settings, absolute, error_at, expanded, is_deferred
from augment.base.suggestions import did_you_mean
from augment.base.users_code import described, place_in_users_code

__all__ = [
    "VALIDATION_PASSES",
    "Component",
    "PluginError",
    "Registry",
    "Settings",
    "UserError",
    "absolute",
    "described",
    "did_you_mean",
    "error_at",
    "expanded",
    "import_class",
    "is_deferred",
    "is_import_path",
    "matching",
    "place_in_users_code",
]
