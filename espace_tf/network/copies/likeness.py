"""Layers made like others: of their configuration, and of what a configuration cannot hold."""

import copy
import re
import sys
from types import ModuleType
from typing import Any

import keras

# What a layer may hold under these names need not survive a configuration: a function of the user's
# may bear a name that Keras knows, an activation may be a layer, an initializer an array.
_OWN = re.compile(r"(^|_)(activation|initializer|regularizer|constraint)$")
# What ties a layer to its place in a graph, and in Keras 3 functions that are bound to it.
_NODES = ("_inbound_nodes", "_outbound_nodes", "_inbound_nodes_value", "_outbound_nodes_value")
_BOUND = ("build", "quantize")


def like(layer: Any, kind: type | None = None, /, **changes: Any) -> Any:
    """A new layer like another, not built: of its configuration and its own objects.

    Activation functions, regularizers, constraints and initializers that Keras would not rebuild as
    they are, are handed over: the new layer has the same objects. Activations that are layers are
    made anew; their weights are weights of the layer.

    Args:
        layer: of Keras 3 or tf_keras.
        kind: the class of the new one, which takes the same arguments; None: the layer's own. In
            another class, whose weights may have other shapes, arrays and functions as initializers
            give way to the class's defaults.
        **changes: constructor arguments that are to be others.

    Example:
        >>> wide = like(conv, filters=64)
    """
    own = {name: value for name, value in _own(layer).items() if name not in changes}
    if kind is None:
        kind, left_out = type(layer), ()
    else:
        left_out = [name for name in own if name.endswith("initializer")]
        own = {name: value for name, value in own.items() if name not in left_out}
    config = {key: value for key, value in configuration(layer).items() if key not in left_out}
    if _is_stock(layer):
        given = {name: value for name, value in own.items() if name in config}
        config |= {name: _again(value) for name, value in given.items()}
    made = kind.from_config({**config, **changes})
    _hand_over(layer, made, {*changes, *left_out})
    return made


def again(layer: Any) -> Any:
    """A fresh layer like another, for another model; its weights are still to be set.

    A layer that its configuration does not rebuild, because its constructor takes no name for
    example, is copied as the object that it is, weights included.

    Raises:
        ValueError: such a layer with weights that cannot be copied.
    """
    if type(layer).__name__ == "Lambda":
        return _duplicate(layer)  # Keras refuses to rebuild functions without a name
    try:
        made = like(layer)
        if type(made) is type(layer) and made.name == layer.name:
            _build_like(layer, made)
            return made
        problem = f"from_config makes a {type(made).__name__} named {made.name!r}"
    except Exception as error:
        problem = str(error)
    try:
        return _duplicate(layer)
    except Exception as error:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be rebuilt from its config: "
            f"{problem}. Nor can it be copied: {error}. Give it a complete get_config, as Keras "
            "needs to save it too"
        ) from error


def _build_like(layer: Any, made: Any) -> None:
    """Builds a layer of Keras 3 by the shapes that another one was built by, as loading it does.

    A layer that is called in several places, or was called before it came into the graph, need not
    be built by the call that a copy of the graph makes first.
    """
    if isinstance(layer, keras.layers.Layer) and layer.built and not made.built:
        made.build_from_config(layer.get_build_config() or {})


def _library(layer: Any) -> ModuleType:
    return keras if isinstance(layer, keras.Operation) else sys.modules["tf_keras"]


def _is_layer(value: Any) -> bool:
    known = [keras, *filter(None, [sys.modules.get("tf_keras")])]
    return isinstance(value, tuple(library.layers.Layer for library in known))


def _is_stock(layer: Any) -> bool:
    """Whether a layer's class is the libraries' or ours: its arguments are what they seem."""
    return type(layer).__module__.split(".")[0] in ("keras", "tf_keras", "espace_tf")


def _own(layer: Any) -> dict[str, Any]:
    """The objects that a layer's configuration may not hold, by attribute."""
    return {
        name: value
        for name, value in vars(layer).items()
        if _OWN.search(name) and callable(value) and not _survives(layer, value)
    }


def _survives(layer: Any, value: Any) -> bool:
    """Whether the library's configurations give the very same thing again."""
    name = getattr(value, "__name__", None)
    if name is not None:
        return getattr(_library(layer).activations, name, None) is value
    stock = type(value).__module__.split(".")[0] in ("keras", "tf_keras")
    return stock and not _is_layer(value) and type(value).__name__ != "Constant"


def _again(value: Any) -> Any:
    """An own object for another layer; an activation that is a layer has its weights at once.

    Keras 3 makes them in the first call with numbers, which a copy has not had when it is filled.
    """
    if not _is_layer(value):
        return value
    return again(value)


def configuration(layer: Any) -> dict[str, Any]:
    """A layer's configuration without its own objects, where it has any."""
    bare = _bare(layer, {})
    if bare is layer:
        return layer.get_config()
    try:
        return bare.get_config()
    except Exception:
        return layer.get_config()  # a get_config of a user's, which reads more of them


def _bare(layer: Any, seen: dict[int, Any]) -> Any:
    """A stand-in for a layer, with neutral objects in the place of its own, to ask for its
    configuration; the layer itself if it has none, nor a layer inside it.
    """
    if id(layer) in seen:
        return seen[id(layer)]
    seen[id(layer)] = layer
    state = {name: _bare(value, seen) for name, value in _inside(layer).items()}
    state = {name: value for name, value in state.items() if value is not vars(layer)[name]}
    state |= {name: _neutral(layer, name) for name in _own(layer)}
    if state:
        seen[id(layer)] = _shell(layer, {**vars(layer), **state})
    return seen[id(layer)]


def _inside(layer: Any) -> dict[str, Any]:
    """The layers that are attributes of a layer, as those of wrappers are."""
    own = _own(layer)
    return {
        name: value for name, value in vars(layer).items() if _is_layer(value) and name not in own
    }


def _neutral(layer: Any, name: str) -> Any:
    library = _library(layer)
    if name.endswith("activation"):
        return library.activations.linear
    return library.initializers.Zeros() if name.endswith("initializer") else None


def _hand_over(layer: Any, made: Any, left_out: set[str]) -> None:
    """Gives a new layer, and the layers inside it, the own objects of another one."""
    for name, value in _own(layer).items():
        there = getattr(made, name, None)
        if name in left_out or there is value or (_is_layer(value) and type(there) is type(value)):
            continue
        setattr(made, name, _again(value))
    for name, value in _inside(layer).items():
        if type(vars(made).get(name)) is type(value):
            _hand_over(value, vars(made)[name], set())


def _shell(layer: Any, state: dict[str, Any]) -> Any:
    """An object of a layer's class with this state and no place in a graph."""
    made = object.__new__(type(layer))
    places = {name: [] for name in _NODES if name in state}
    vars(made).update({k: v for k, v in state.items() if k not in _BOUND} | places)
    return made


def _duplicate(layer: Any) -> Any:
    """A layer of the same state: shared with the original if it has no weights, else copied."""
    alone = _shell(layer, vars(layer))
    if not layer.variables:
        return alone
    if not hasattr(layer, "_tracker"):
        return copy.deepcopy(alone)
    # A layer of Keras 3 is copied by way of its configuration, whatever is asked for: its parts are
    # copied one by one here. Its tracker holds lists of what the layer owns, told by their numbers.
    pairs = [(alone, object.__new__(type(layer)))]
    pairs += [(e, object.__new__(type(e))) for e in layer._flatten_layers(include_self=False)]
    memo: dict[int, Any] = {id(layer): pairs[0][1]}
    for old, new in pairs:
        new._initialize_tracker()
        memo |= {id(old): new, id(old._tracker): new._tracker}
        for name, (_, store) in old._tracker.config.items():
            memo[id(store)] = new._tracker.config[name][1]
        for holder in (old, *old._seed_generators):
            memo |= {id(v): v for v in vars(holder).values() if isinstance(v, ModuleType)}
    for old, new in pairs:
        state = {name: value for name, value in vars(old).items() if name not in _BOUND}
        vars(new).update(copy.deepcopy(state, memo))
    for old, new in pairs:
        for name, (_, store) in old._tracker.config.items():
            new._tracker.config[name][1][:] = [copy.deepcopy(each, memo) for each in store]
            new._tracker.stored_ids[name] = set(map(id, new._tracker.config[name][1]))
        new._tracker.locked = old._tracker.locked
    return pairs[0][1]
