"""Let a peer be imported where one of its optional dependencies cannot be.

Put this folder on PYTHONPATH and name the modules to replace in PEER_STUB_MODULES (a
comma-separated list). Each of them, and everything below it, then imports as an empty module whose
names are classes that refuse to be built. So a peer that imports such a module only for networks
that are not used here works, and one that does use it fails at once instead of measuring nonsense.

Python runs this file at the start of every process, workers included.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types


class _Refuses:
    """Stands for any class or function of a replaced module."""

    def __init__(self, *args, **kwargs):
        raise RuntimeError(
            f"{type(self).__module__}.{type(self).__name__} is a stub: not usable here"
        )


class _EmptyModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Refuses,), {"__module__": self.__name__})


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _EmptyModule(spec.name)

    def exec_module(self, module):
        """Nothing to run: the module answers every name by itself."""


_names = {name for name in os.environ.get("PEER_STUB_MODULES", "").split(",") if name}
if _names:
    sys.meta_path.insert(0, _StubFinder(_names))
