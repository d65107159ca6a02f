"""Weights of networks as data: a file, and a card that says what it is.

A file ``NAME.safetensors`` has its card ``NAME.json`` beside it. The hash of a file is compared with that of its card before anything in
it is looked at, and the bytes that were hashed are the bytes that are loaded. Shipped files and cards are in ``Resources/models`` beside the
library, in the checkout and in the installed extension; cards of published files that are not ours are there without the file, which
belongs into ``Runtime.cache``/models and is never fetched without being asked for. Other formats: ``foreign``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime import Runtime
from .unet import AffineEncoder, UNet

MODELS = Path(__file__).resolve().parents[2] / "Resources" / "models"
NEEDED = "reading and writing .safetensors files needs the package safetensors; install it with: pip install safetensors"
SCALINGS = ("minmax", "robust", "bytes", "none")


@dataclass(frozen=True)
class WeightsCard:
    """What a file of weights is.

    name: what users call it, the stem of both files; file: its name beside the card, or its address (https) where it is not ours to ship;
    sha256, size in bytes ('' and 0 where the source states none); network: a name of ``builders``, arguments: those of its constructor.

    What the network was trained to see: spacing mm along (x, y, z) of its lattice (() takes the image's), orientation of that lattice as
    three letters, for example LIA: x to the left, y to inferior, z to anterior ('' takes the image's), shape (z, y, x) voxels (() takes any),
    scaling of intensities to [0, 1] by 'minmax', 'robust' (without the last 0.5 % on either side), 'bytes' (0 to 255 by 255, other ranges as
    'minmax') or 'none'. training: recipe, steps and hardware; limits: what it is not for.
    """

    name: str
    title: str
    file: str
    sha256: str
    size: int
    licence: str
    trained_on: str
    network: str
    arguments: dict = field(default_factory=dict)
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    shape: tuple[int, ...] = ()
    scaling: str = "minmax"
    training: str = ""
    limits: str = ""
    reference: str = ""

    def line(self) -> str:
        """One line for people: what it is, how large, under which licence."""
        size = f"{self.size / 1e6:.1f} MB" if self.size else "size not stated by its source"
        return f"{self.title} ({size}; {self.licence})"


def builders() -> dict:
    """Name on a card -> class of the network; a card's arguments are those of the class."""
    from .composition import MultiResolution
    from .embedding import PlateEmbedding
    from .generator import AtlasGenerator
    from .pyramid import SymmetricPyramid

    return {"UNet": UNet, "AffineEncoder": AffineEncoder, "MultiResolution": MultiResolution, "SymmetricPyramid": SymmetricPyramid,
            "PlateEmbedding": PlateEmbedding, "AtlasGenerator": AtlasGenerator}


def build(card: WeightsCard) -> torch.nn.Module:
    """The untrained network of a card, ready for ``fill``. InputError where the card names none of ``builders`` or wrong arguments."""
    known = builders()
    if card.network not in known:
        raise InputError(f"the card '{card.title}' names the network '{card.network}'; this version knows {', '.join(known)}")
    try:
        return known[card.network](**card.arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"the card '{card.title}' does not describe a {card.network}: {error}") from None


def fill(network: torch.nn.Module, state: dict, name: str) -> torch.nn.Module:
    """``network`` with the tensors of ``state`` (half precision becomes single), in evaluation mode and without gradients.

    InputError where a tensor is missing, left over or of another shape.
    """
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    wanted = network.state_dict()
    state = {**{key: value for key, value in wanted.items() if not value.is_floating_point()}, **state}
    wrong = sorted(set(wanted) ^ set(state)) or [key for key, value in wanted.items() if value.shape != state[key].shape]
    if wrong:
        raise InputError(f"{name} does not fit the network of its card ({', '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''}); "
                         "it belongs to another network or version")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def write(path: Path, network: torch.nn.Module, card: WeightsCard, half: bool = False) -> WeightsCard:
    """Write the tensors of ``network`` as ``path`` (.safetensors) with its card beside it, under other names first; returns the card with the
    file's name, hash and size. ``half``: 16 bits a number."""
    save = _safetensors().save
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"weights are written as .safetensors; '{path.name}' was given")
    kind = torch.float16 if half else torch.float32
    state = {key: value.detach().cpu().to(kind).contiguous() for key, value in network.state_dict().items() if value.is_floating_point()}
    data = save(state)
    card = replace(card, name=path.stem, file=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, data), (path.with_suffix(".json"), card_text(card).encode("utf-8"))):
        temporary = target.with_name(target.name + ".part")
        temporary.write_bytes(content)
        os.replace(temporary, target)
    return card


def card_text(card: WeightsCard) -> str:
    """The card as the text of its file."""
    return json.dumps(asdict(card), indent=1, ensure_ascii=False) + "\n"


def read_card(path: Path) -> WeightsCard:
    """The card in a JSON file; InputError where it is none."""
    try:
        held = json.loads(Path(path).read_text("utf-8"))
        card = WeightsCard(**{key: tuple(value) if isinstance(value, list) else value for key, value in held.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        raise InputError(f"{path} is no card of weights; a JSON file with {', '.join(f.name for f in fields(WeightsCard)[:9])} is needed") from None
    if card.scaling not in SCALINGS:
        raise InputError(f"{path}: scaling '{card.scaling}'; expected one of {', '.join(SCALINGS)}")
    return card


def cards(folder: Path | None = None) -> dict[str, WeightsCard]:
    """Name -> card of everything that is shipped or published, from ``Resources/models``."""
    found = [read_card(path) for path in sorted((folder or MODELS).glob("*.json"))]
    return {card.name: card for card in found}


def checked(path: Path, card: WeightsCard | None) -> bytes:
    """The bytes of a file after its hash was compared with that of its card. InputError where it cannot be read or is another file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"the weights {path} cannot be read ({error.strerror}); check the path") from None
    found = hashlib.sha256(data).hexdigest()
    if card is not None and card.sha256 and found != card.sha256:
        raise InputError(f"the weights {path} are not the file that their card describes (sha256 {found[:12]}..., the card says "
                         f"{card.sha256[:12]}...): they were changed or damaged and are not loaded; get the file again")
    return data


def read(data: bytes, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the bytes of a .safetensors file. InputError where they are none."""
    load = _safetensors().load
    try:
        return load(data)
    except Exception as error:  # the package has an exception of its own for every broken header
        raise InputError(f"{name} is no .safetensors file ({str(error)[:80]}); get the file again") from None


def read_checkpoint(data: bytes, name: str):
    """What a torch checkpoint holds, tensors and plain values only. InputError where it holds other objects: loading these runs code."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{name} holds more than tensors and plain values, or is no torch checkpoint, and is not loaded "
                         f"({str(error).splitlines()[0][:80]}); save its state dict again with torch.save") from None


def locate(name: str, runtime: Runtime, folder: Path | None = None) -> tuple[Path, WeightsCard | None]:
    """(file, card or None) of a path, or of the name of a card whose file is beside it or in the cache.

    InputError for a name that is neither, and for a file that has to be fetched first: it says from where, how large and under which licence.
    """
    path, known = Path(name).expanduser(), cards(folder)
    if path.is_file():
        beside = path.with_suffix(".json")
        return path, read_card(beside) if beside.is_file() else _by_hash(path, known)
    if name not in known:
        raise InputError(f"the weights '{name}' are neither a file nor known by that name; known are {', '.join(known) or 'none'}")
    card = known[name]
    places = (folder or MODELS) / Path(card.file).name, cached(card, runtime)
    for place in places:
        if place.is_file():
            return place, card
    raise InputError(f"the weights '{name}' are not here: {card.line()}; they are at {card.file} and belong into {places[1].parent}, "
                     "where they are put when fetching is asked for")


def cached(card: WeightsCard, runtime: Runtime) -> Path:
    """Where the file of a published card is kept."""
    return runtime.cache / "models" / (card.name + Path(card.file).suffix)


def fetch(card: WeightsCard, runtime: Runtime, agreed: bool = False) -> Path:
    """Fetch the file of a published card into the cache, check it and return its path; what is there already is not fetched again.

    ``agreed`` says that the user was shown the card's licence and size and wants it. InputError without that, without an https address or
    a hash, and where the file cannot be had or is another one; then nothing is left behind.
    """
    import urllib.error
    import urllib.request

    target = cached(card, runtime)
    if target.is_file():
        checked(target, card)
        return target
    if not agreed:
        raise InputError(f"the weights '{card.name}' would be fetched from {card.file}: {card.line()}; agree to that first")
    if not card.file.startswith("https://") or not card.sha256:
        raise InputError(f"the card of '{card.name}' has no https address with a hash, so it is not fetched; get the file by hand and give its path")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(card.file, timeout=60) as source:
            temporary.write_bytes(source.read())
        checked(temporary, card)
        os.replace(temporary, target)
    except urllib.error.URLError as error:
        raise InputError(f"{card.file} cannot be fetched ({error.reason}); get the file by hand and put it into {target.parent}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def load(name: str, runtime: Runtime, folder: Path | None = None) -> tuple[torch.nn.Module, WeightsCard]:
    """(network in evaluation mode, card) of a file or of a known name, of any format; the card has the hash of the file that was loaded.

    A file without a card is taken where its format describes its network (``foreign``). InputError as ``locate``, ``checked`` and ``read``.
    """
    path, card = locate(name, runtime, folder)
    data = checked(path, card)
    if path.suffix == ".safetensors":
        if card is None:
            raise InputError(f"{path} has no card; {path.with_suffix('.json').name} must stand beside it")
        network = fill(build(card), read(data, path.name), path.name)
    else:
        from .foreign import load_foreign

        network, card = load_foreign(path, data, card)
    return network, replace(card, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _by_hash(path: Path, known: dict[str, WeightsCard]) -> WeightsCard | None:
    """The known card of a file, whatever the file is called now."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return next((card for card in known.values() if card.sha256 == found), None)


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise InputError(NEEDED) from None
    return safetensors.torch
