"""Published weights: files are read and nothing in them runs; every name finds its place; and the
networks compute what the official ones do, by an evaluation in numpy of the official names.
"""

import io
import math
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy.special import erf

from common import pretrained
from common.checkpoint import CheckpointError
from common.pretrained import official
from common.tensorfile import load_tensors
from common.text import TextConfig
from glide import classifier, model
from glide import pretrained as glide
from sdedit import model as sdedit_model
from sdedit import pretrained as sdedit

RNG = np.random.default_rng


# Files as torch.save writes them: a zip of data.pkl, data/0, data/1, ..., version, byteorder.

STORAGE = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16",
           "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
           "bool": "Bool"}  # fmt: skip


class Storage:
    def __init__(self, flat, claimed=None):
        self.flat, self.claimed = flat, flat.size if claimed is None else claimed


class Tensor:
    def __init__(self, storage, offset, shape, stride):
        self.arguments = storage, offset, tuple(shape), tuple(stride), False, OrderedDict()


class Parameter:
    def __init__(self, data):
        self.data = data


NAMES = {
    "torch": [f"{kind}Storage" for kind in STORAGE.values()],
    "torch._utils": ["_rebuild_tensor_v2", "_rebuild_parameter"],
    "pytorch_lightning.callbacks.model_checkpoint": ["ModelCheckpoint"],
}


@pytest.fixture
def torch(monkeypatch):
    """What a pickle of PyTorch's names, made up, so that the pickler here finds it."""
    made = {}
    for module, names in NAMES.items():
        made |= {name: type(name, (), {"__module__": module}) for name in names}
        for parent in [module[:i] for i, letter in enumerate(module) if letter == "."]:
            monkeypatch.setitem(
                sys.modules, parent, sys.modules.get(parent, types.ModuleType(parent))
            )
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**made))
    return types.SimpleNamespace(**made)


class Writer(pickle.Pickler):
    """Pickles arrays as PyTorch does tensors: their memory stays outside, in `storages`."""

    def __init__(self, file, torch, protocol, *more):
        super().__init__(file, protocol)
        self.torch, self.storages, self.alive, self.more = torch, {}, [], more

    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            key, _ = self.storages.setdefault(id(thing), (str(len(self.storages)), thing.flat))
            kind = getattr(self.torch, f"{STORAGE[thing.flat.dtype.name]}Storage")
            return ("storage", kind, key, "cpu", thing.claimed, *self.more)

    def reducer_override(self, thing):
        if isinstance(thing, Parameter):
            return self.torch._rebuild_parameter, (thing.data, True, OrderedDict())
        if isinstance(thing, np.ndarray):
            thing = np.array(thing, order="C")
            stride = [n // thing.itemsize for n in thing.strides]
            thing = Tensor(Storage(thing.reshape(-1)), 0, thing.shape, stride)
            self.alive.append(thing)  # or its id is given away again
        if isinstance(thing, Tensor):
            return self.torch._rebuild_tensor_v2, thing.arguments
        return NotImplemented


def write_archive(path, pickled, storages=(), byteorder=b"little", leave_out=()):
    """Members are aligned to 64 bytes by an extra field, as PyTorch aligns them."""
    members = {"data.pkl": pickled, "byteorder": byteorder}
    members |= {f"data/{key}": np.ascontiguousarray(x).tobytes() for key, x in storages}
    members |= {"version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name in leave_out:
                continue
            info = zipfile.ZipInfo(f"archive/{name}")
            start = archive.fp.tell() + 30 + len(info.filename) + 4
            info.extra = b"FB" + struct.pack("<H", -start % 64) + b"Z" * (-start % 64)
            archive.writestr(info, content)
    return path


def torch_save(path, thing, torch, protocol=2, **options):
    file = io.BytesIO()
    writer = Writer(file, torch, protocol)
    writer.dump(thing)
    return write_archive(path, file.getvalue(), writer.storages.values(), **options)


MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4}}


def legacy_save(path, thing, torch, version=1001, machine=MACHINE, view=None):
    """As torch.save did before 1.6: pickles in a row, then the storages in the order of keys."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, version, machine):
        pickle.dump(part, file, 2)
    writer = Writer(file, torch, 2, view)
    writer.dump(thing)
    storages = sorted(writer.storages.values(), key=lambda pair: -int(pair[0]))
    pickle.dump([key for key, _ in storages], file, 2)
    for _, flat in storages:
        file.write(struct.pack("<q", flat.size) + flat.tobytes())
    path.write_bytes(file.getvalue())
    return path


def one_line(path, match, load=load_tensors):
    """The error is one line, names the file, and says `match`."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def a_state(torch):
    """One tensor of every type, a Parameter, and views of one storage."""
    rng, storage = RNG(0), Storage(flat := RNG(1).standard_normal(24).astype(np.float32))
    values = rng.integers(0, 100, (2, 3))
    state = OrderedDict((name, values.astype(name)) for name in STORAGE)
    state["parameter"] = Parameter(np.float32([1, 2]))
    state["scalar"], state["empty"] = np.array(7, np.float32), np.zeros((0, 3), np.float16)
    state["rows"] = Tensor(storage, 4, (2, 5), (5, 1))
    state["turned"] = Tensor(storage, 0, (4, 6), (1, 4))
    state._metadata = OrderedDict(version=1)  # module.state_dict() carries this
    expected = {k: v.data if isinstance(v, Parameter) else v for k, v in state.items()}
    expected |= {name: values.astype(name) for name in STORAGE}
    return state, expected | {"rows": flat[4:14].reshape(2, 5), "turned": flat.reshape(6, 4).T}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_torch_archive_gives_every_type_and_view_without_copying(tmp_path, torch, protocol):
    state, expected = a_state(torch)
    found = load_tensors(torch_save(tmp_path / "a.pt", state, torch, protocol))
    assert_same(found, expected)
    assert not any(x.flags.writeable or x.flags.owndata for x in found.values() if x.size)


def test_the_state_dict_of_a_lightning_checkpoint_is_unwrapped(tmp_path, torch):
    state, expected = a_state(torch)
    path = torch_save(tmp_path / "a.ckpt", {
        "epoch": 3, "global_step": 10**6, "loss": 0.5, "done": (True, None, b"bytes"),
        "callbacks": {torch.ModelCheckpoint: {"best": np.float64(2.5), "paths": ["a", "b"]}},
        "optimizer_states": [{"state": {0: {"step": 2**40, "exp_avg": np.zeros(3)}}}],
        "state_dict": state,
    }, torch)  # fmt: skip
    assert_same(load_tensors(path), expected)


def test_a_file_of_before_torch_1_6_gives_the_same(tmp_path, torch):
    """As SDEdit's networks may have been saved."""
    state, expected = a_state(torch)
    found = load_tensors(path := legacy_save(tmp_path / "a.ckpt", state, torch))
    assert_same(found, expected)
    assert not any(x.flags.writeable or x.flags.owndata for x in found.values() if x.size)
    assert_same(load_tensors(legacy_save(path, {"state_dict": state}, torch)), expected)


def test_a_damaged_or_malicious_file_of_before_torch_1_6_is_refused(tmp_path, torch):
    path, state = tmp_path / "a.ckpt", {"w": FLAT, "b": FLAT.astype(np.float16)}
    whole = legacy_save(path, state, torch).read_bytes()
    for size in (16, 30, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        one_line(path, "truncated|neither")
    for options in ({"version": 1000}, {"machine": {**MACHINE, "little_endian": False}},
                    {"view": ("key", 0, 6)}):  # fmt: skip
        one_line(legacy_save(path, state, torch, **options), "truncated, damaged")
    one_line(legacy_save(path, {"w": BEYOND["offset"]}, torch), "beyond its storage")
    mark = tmp_path / "touched"
    for where in ("version", "machine", "thing"):
        attack = {"thing": state, where: Call(os.system, f"touch {mark}")}
        one_line(legacy_save(path, **attack, torch=torch), "'posix.system'.* refused")
        assert not mark.exists()


def test_the_tensors_of_a_list_are_numbered(tmp_path, torch):
    """As in Karlo's file of means and deviations."""
    for pair in ((FLAT, FLAT + 1), [FLAT, FLAT + 1]):
        found = load_tensors(torch_save(tmp_path / "a.th", pair, torch))
        assert_same(found, {"0": FLAT, "1": FLAT + 1})


def test_the_tensors_of_a_torchscript_module_are_called_by_their_places(
    tmp_path, torch, monkeypatch
):
    """CLIP's archives pickle the module itself: objects of classes whose code is in the file."""
    kind = type("Visual", (), {"__module__": "__torch__.clip.___torch_mangle_7"})
    monkeypatch.setitem(sys.modules, kind.__module__, types.SimpleNamespace(Visual=kind))
    monkeypatch.setitem(sys.modules, "__torch__", types.ModuleType("__torch__"))
    monkeypatch.setitem(sys.modules, "__torch__.clip", types.ModuleType("__torch__.clip"))
    whole, part, conv = kind(), kind(), kind()
    conv.__dict__ |= {"training": True, "weight": FLAT.reshape(2, 3), "bias": None}
    part.__dict__ |= {"0": conv, "stride": (1, 2.5), "kind": "conv", "empty": kind()}
    whole.__dict__ |= {"visual": part, "scale": np.array(7, np.float16), "_is_full": None}
    path = torch_save(tmp_path / "a.pt", whole, torch)
    expected = {"visual.0.weight": FLAT.reshape(2, 3), "scale": np.array(7, np.float16)}
    assert_same(load_tensors(path), expected)
    one_line(write_archive(path, b"c__torch__.posix\nsystem\nX\x02\x00\x00\x00ls\x85R."), "calls")
    one_line(write_archive(path, b"c__torch__\nA\n)\x81K\x01b."), "truncated, damaged")
    itself = b"c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    one_line(write_archive(path, itself), "truncated, damaged")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_safetensors_file_gives_the_same(tmp_path, dtype):
    tensors = {"a.weight": RNG(0).standard_normal((3, 4)).astype(dtype), "b": np.zeros(0, dtype)}
    safetensors.numpy.save_file(tensors, path := tmp_path / "a.safetensors", {"format": "pt"})
    found = load_tensors(path)
    assert_same(found, tensors)
    assert not found["a.weight"].flags.owndata


class Call:
    """Pickles as the call of a function: what a malicious file holds."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "posix.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Call(getattr, "", "upper"),
    f"{Path.__module__}.PosixPath": lambda mark: mark,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_pickle_runs_nothing_and_is_refused_by_name(tmp_path, name, protocol):
    attack = ATTACKS[name](tmp_path / "touched")
    places = [attack, {"state_dict": {"w": attack}}, {"callbacks": [attack], "state_dict": {}}]
    said = (name if protocol > 2 else name.replace("builtins", "__builtin__")) + "'.* refused"
    for thing in places if protocol else places[:1]:
        one_line(write_archive(tmp_path / "a.pt", pickle.dumps(thing, protocol)), said)
        assert not (tmp_path / "touched").exists()


def test_the_attacks_would_have_worked(tmp_path):
    for name in ("posix.system", "builtins.eval"):
        pickle.loads(pickle.dumps(ATTACKS[name](mark := tmp_path / name)))
        assert mark.exists()


@pytest.mark.parametrize("pickled, said", [
    (b"(X\x02\x00\x00\x00lsios\nsystem\n.", "'os.system'.* refused"),  # INST, names and calls
    (b"cantigravity\nfly\n.", "'antigravity.fly'.* refused"),
    (b"\x8c\x0bantigravity\x8c\x03fly\x93.", "'antigravity.fly'.* refused"),
    (b"ctorch\nload\n.", "'torch.load'.* refused"),
    (b"ctorch\nFloatStorage\n)R.", "calls 'torch.FloatStorage'"),
    (b"X\x17\x00\x00\x00collections.OrderedDict)R.", "calls 'collections.OrderedDict'"),
    (b"\x82\x01.", "operation b'.x82'"),  # EXT1: a name by number
    (b"N.", "NoneType instead of a dict"),
    (b"}X\x01\x00\x00\x00aK\x01s.", "'a' is no tensor"),
    (b"})K\x01s.", "keys"),
    (b"R.", "more than it has"), (b".", "more than it has"), (b"}", "operation b''"),
    (b"]K\x01u.", "truncated"), (b"Nh\x07.", "truncated"), (b"NK\x01a.", "truncated"),
    (b"NQ.", "truncated"), (b"(" * 10**5 + b"t" * 10**5 + b".", "'0' is no tensor"),
])  # fmt: skip
def test_any_other_pickle_is_refused_in_one_line_and_imports_nothing(tmp_path, pickled, said):
    one_line(write_archive(tmp_path / "a.pt", pickled), said)
    assert "antigravity" not in sys.modules


FLAT = np.arange(6, dtype=np.float32)
BEYOND = {
    "offset": Tensor(Storage(FLAT), 1, (6,), (1,)),
    "stride": Tensor(Storage(FLAT), 0, (2, 3), (4, 1)),
    "negative": Tensor(Storage(FLAT), 5, (2,), (-1,)),
    "overflow": Tensor(Storage(FLAT), 2, (3,), (2**61 - 1,)),
    "expanded": Tensor(Storage(FLAT), 0, (2, 2**30), (1, 0)),
    "ranks": Tensor(Storage(FLAT), 0, (2, 3), (1,)),
    "storage": Tensor(Storage(FLAT, 10**9), 0, (6,), (1,)),
    "short": Tensor(Storage(FLAT, -1), 0, (6,), (1,)),
    "size": Tensor(Storage(FLAT), 0, (2.0,), (1,)),
    "no storage": Tensor(FLAT, 0, (6,), (1,)),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, torch, name):
    one_line(torch_save(tmp_path / "a.pt", {"w": BEYOND[name]}, torch), "truncated, damaged")


def test_a_file_cut_off_or_changed_anywhere_is_refused(tmp_path, torch):
    state = {"w": RNG(0).standard_normal((4, 5)).astype(np.float32)}
    path, copy = torch_save(tmp_path / "a.pt", state, torch), tmp_path / "b.pt"
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    whole, safe = path.read_bytes(), (tmp_path / "a.safetensors").read_bytes()
    for content in (whole, safe):
        for size in (0, 3, 9, 40, len(content) // 2, len(content) - 30, len(content) - 1):
            copy.write_bytes(content[:size])
            one_line(copy, "truncated|neither")
    at = whole.index(state["w"].tobytes()) + 11
    copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    one_line(copy, "data/0 is not what was stored")
    assert_same(load_tensors(path), state)


def test_what_is_no_archive_of_tensors_is_refused_with_a_way_out(tmp_path, torch):
    one_line(tmp_path / "none.pt", "no weights at")
    one_line(tmp_path, "no weights at")
    (path := tmp_path / "a.pt").write_bytes(b"<!DOCTYPE html><html>")
    one_line(path, "neither safetensors nor")
    path.write_bytes(pickle.dumps({"w": 1.0}, 2))
    one_line(path, "neither safetensors nor")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    one_line(path, "no data.pkl")
    state = {"w": FLAT}
    for options, said in (
        ({"byteorder": b"big"}, "big-endian"),
        ({"leave_out": ["data/0"]}, "no member data/0"),
    ):
        one_line(torch_save(path, state, torch, **options), said)
    assert_same(load_tensors(torch_save(path, state, torch, leave_out=["byteorder"])), state)


# What is published, by the constructors of the official code: {name: shape} of each network.


def linear(name, inputs, outputs, *kernel):
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def adm_resblock(name, inputs, outputs, emb):
    layout = norm(f"{name}.in_layers.0", inputs)
    layout |= linear(f"{name}.in_layers.2", inputs, outputs, 3, 3)
    layout |= linear(f"{name}.emb_layers.1", emb, 2 * outputs)
    layout |= norm(f"{name}.out_layers.0", outputs)
    layout |= linear(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        layout |= linear(f"{name}.skip_connection", inputs, outputs, 1, 1)
    return layout


def adm_attention(name, channels, context):
    layout = norm(f"{name}.norm", channels) | linear(f"{name}.qkv", channels, 3 * channels, 1)
    if context:
        layout |= linear(f"{name}.encoder_kv", context, 2 * channels, 1)
    return layout | linear(f"{name}.proj_out", channels, channels, 1)


def adm_layout(c, inputs=3, context=None, tokens=None):
    """UNetModel; with a context, GLIDE's; with tokens (of its pooling), EncoderUNetModel."""
    emb, widths = 4 * c.width, [int(m * c.width) for m in c.multipliers]
    layout = linear("time_embed.0", c.width, emb) | linear("time_embed.2", emb, emb)
    if c.num_classes:
        layout["label_emb.weight"] = (c.num_classes, emb)
    here, skips, n = widths[0], [widths[0]], 1
    layout |= linear("input_blocks.0.0", inputs, here, 3, 3)
    for level, width in enumerate(widths):
        for _ in range(c.blocks):
            layout |= adm_resblock(f"input_blocks.{n}.0", here, width, emb)
            if 2**level in c.attention:
                layout |= adm_attention(f"input_blocks.{n}.1", width, context)
            here, n = width, n + 1
            skips.append(here)
        if level + 1 < len(widths):
            layout |= adm_resblock(f"input_blocks.{n}.0", here, here, emb)
            skips.append(here)
            n += 1
    layout |= adm_resblock("middle_block.0", here, here, emb)
    layout |= adm_attention("middle_block.1", here, context)
    layout |= adm_resblock("middle_block.2", here, here, emb)
    if tokens:
        layout |= norm("out.0", here) | {"out.2.positional_embedding": (here, tokens)}
        layout |= linear("out.2.qkv_proj", here, 3 * here, 1)
        return layout | linear("out.2.c_proj", here, c.out_channels, 1)
    n = 0
    for level, width in reversed(list(enumerate(widths))):
        for i in range(c.blocks + 1):
            layout |= adm_resblock(f"output_blocks.{n}.0", here + skips.pop(), width, emb)
            here, last = width, 1
            if 2**level in c.attention:
                layout |= adm_attention(f"output_blocks.{n}.1", width, context)
                last = 2
            if level and i == c.blocks:
                layout |= adm_resblock(f"output_blocks.{n}.{last}", here, here, emb)
            n += 1
    return layout | norm("out.0", here) | linear("out.2", here, c.out_channels, 3, 3)


def glide_layout(c):
    """Text2ImUNet and its kin: 3 input channels, 4 for inpainting, 3 for upsampling."""
    inputs, D = 3 + 4 * ("known" in c.inputs) + 3 * ("low_res" in c.inputs), c.text.width
    layout = adm_layout(c.unet, inputs, context=D)
    layout |= {"token_embedding.weight": (c.text.vocabulary, D)}
    layout |= {f"{name}_embedding": (c.text.length, D) for name in ("positional", "padding")}
    for i in range(c.text.layers):
        name = f"transformer.resblocks.{i}"
        layout |= linear(f"{name}.attn.c_qkv", D, 3 * D) | linear(f"{name}.attn.c_proj", D, D)
        layout |= norm(f"{name}.ln_1", D) | norm(f"{name}.ln_2", D)
        layout |= linear(f"{name}.mlp.c_fc", D, 4 * D) | linear(f"{name}.mlp.c_proj", 4 * D, D)
    return layout | norm("final_ln", D) | linear("transformer_proj", D, 4 * c.unet.width)


def ddpm_resblock(name, inputs, outputs, emb):
    layout = norm(f"{name}.norm1", inputs) | linear(f"{name}.conv1", inputs, outputs, 3, 3)
    layout |= linear(f"{name}.temb_proj", emb, outputs)
    layout |= norm(f"{name}.norm2", outputs) | linear(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        layout |= linear(f"{name}.nin_shortcut", inputs, outputs, 1, 1)
    return layout


def ddpm_attention(name, C):
    layers = [linear(f"{name}.{layer}", C, C, 1, 1) for layer in ("q", "k", "v", "proj_out")]
    return norm(f"{name}.norm", C) | {k: v for layer in layers for k, v in layer.items()}


def ddpm_layout(c):
    emb, widths = 4 * c.width, [m * c.width for m in c.multipliers]
    layout = linear("temb.dense.0", c.width, emb) | linear("temb.dense.1", emb, emb)
    layout |= linear("conv_in", 3, c.width, 3, 3)
    here, skips = c.width, [c.width]
    for level, width in enumerate(widths):
        for i in range(c.blocks):
            layout |= ddpm_resblock(f"down.{level}.block.{i}", here, width, emb)
            here = width
            skips.append(here)
            if 2**level in c.attention:
                layout |= ddpm_attention(f"down.{level}.attn.{i}", here)
        if level + 1 < len(widths):
            layout |= linear(f"down.{level}.downsample.conv", here, here, 3, 3)
            skips.append(here)
    layout |= ddpm_resblock("mid.block_1", here, here, emb) | ddpm_attention("mid.attn_1", here)
    layout |= ddpm_resblock("mid.block_2", here, here, emb)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(c.blocks + 1):
            layout |= ddpm_resblock(f"up.{level}.block.{i}", here + skips.pop(), width, emb)
            here = width
            if 2**level in c.attention:
                layout |= ddpm_attention(f"up.{level}.attn.{i}", here)
        if level:
            layout |= linear(f"up.{level}.upsample.conv", here, here, 3, 3)
    return layout | norm("norm_out", here) | linear("conv_out", here, 3, 3, 3)


def layout_of(c):
    if isinstance(c, model.GlideConfig):
        return glide_layout(c)
    if isinstance(c, sdedit_model.SdeditConfig):
        return ddpm_layout(c.unet)
    if isinstance(c, classifier.ClassifierConfig):
        return adm_layout(c.unet, tokens=(c.size >> len(c.unet.multipliers) - 1) ** 2 + 1)
    return adm_layout(c.unet, 6 if c.low_res else 3)


def load(path, c):
    """Params by the loader of the config's kind."""
    if isinstance(c, model.GlideConfig):
        return glide.load(path, [c])[1]
    if isinstance(c, sdedit_model.SdeditConfig):
        return sdedit.load(path, c)[1]
    kind = glide.load_classifier if isinstance(c, classifier.ClassifierConfig) else glide.load_adm
    return kind(path, c)[1]


PUBLISHED = {  # parameters and tensors
    "base": (model.PAPER, 385_030_726, 783),
    "base_inpaint": (model.PAPER_INPAINT, 385_037_638, 783),
    "upsample": (model.PAPER_UPSAMPLER, 398_361_286, 797),
    "upsample_inpaint": (model.PAPER_UPSAMPLER_INPAINT, 398_368_198, 797),
    "64x64_diffusion": (glide.ADM["64x64_diffusion"], 295_904_454, 541),
    "128x128_diffusion": (glide.ADM["128x128_diffusion"], 421_529_606, 493),
    "256x256_diffusion": (glide.ADM["256x256_diffusion"], 553_838_086, 567),
    "256x256_diffusion_uncond": (glide.ADM["256x256_diffusion_uncond"], 552_814_086, 566),
    "lsun_bedroom": (glide.ADM["lsun_bedroom"], 552_814_086, 566),
    "512x512_diffusion": (glide.ADM["512x512_diffusion"], 558_997_638, 645),
    "64_256_upsampler": (glide.ADM["64_256_upsampler"], 311_795_910, 567),
    "128_512_upsampler": (glide.ADM["128_512_upsampler"], 308_835_270, 537),
    "64x64_classifier": (glide.CLASSIFIERS["64x64_classifier"], 65_438_568, 307),
    "128x128_classifier": (glide.CLASSIFIERS["128x128_classifier"], 42_568_040, 221),
    "256x256_classifier": (glide.CLASSIFIERS["256x256_classifier"], 54_096_360, 249),
    "512x512_classifier": (glide.CLASSIFIERS["512x512_classifier"], 54_448_360, 281),
    "celeba_hq": (sdedit_model.PAPER, 113_673_219, 450),
}


@pytest.fixture
def of_zeros(monkeypatch):
    """Loading fills nothing in and reads tensors of no memory: what is tested is the matching."""
    monkeypatch.setattr(pretrained, "fill", pretrained.match)

    def load_zeros(c, layout):
        zeros = {k: np.broadcast_to(np.float16(0), shape) for k, shape in layout.items()}
        monkeypatch.setattr(pretrained, "load_tensors", lambda path: zeros)
        return load("x.pt", c)

    return load_zeros


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_and_shape_is_used_once_and_they_are_as_many_as_published(
    of_zeros, name
):
    config, parameters, tensors = PUBLISHED[name]
    layout = layout_of(config)
    count = sum(math.prod(shape) for shape in layout.values())
    assert (count, len(layout)) == (parameters, tensors)
    params = of_zeros(config, layout)
    assert sum(math.prod(x.shape) for x in params.values()) == count


# Small ones of the same make, in files.


def shrink(c, **changes):
    """The same kind of network with 32 channels and two levels, on pictures of 8 x 8 pixels."""
    first = c.unet.multipliers[0]
    small = {"width": int(32 / first), "multipliers": (first, 2 * first), "blocks": 1,
             "attention": (2,), "head_dim": 16}  # fmt: skip
    if c.unet.num_classes:
        small["num_classes"] = 5
    if isinstance(c, classifier.ClassifierConfig):
        small["out_channels"] = 7
    c = replace(c, size=8, unet=replace(c.unet, **(small | changes)))
    if isinstance(c, model.GlideConfig):
        return replace(c, text=TextConfig(vocabulary=11, length=5, width=16, layers=2, heads=4))
    return c


FAINT = ("input_blocks.0.0.", "conv_in.", "token_", "positional_", "padding_")


def drawn(layout, seed=0):
    """Values for a layout: half precision where there are more than two axes, else single.

    What the first norms see is faint, so that their epsilons are seen in what comes out.
    """
    rng, state = RNG(seed), OrderedDict()
    for name, shape in layout.items():
        x = rng.standard_normal(shape)
        if name.startswith(FAINT):
            x = 0.01 * x
        elif len(shape) == 1:
            x = 0.3 * x + name.endswith("weight")
        else:
            x = x / math.prod(shape[1:]) ** 0.5
        state[name] = x.astype(np.float16 if len(shape) > 2 else np.float32)
    return state


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_small_file_of_every_kind_fills_every_parameter_in_float32(tmp_path, torch, name):
    config = shrink(PUBLISHED[name][0])
    state = drawn(layout_of(config))
    params = load(torch_save(tmp_path / "a.pt", state, torch), config)
    leaves = jax.tree.leaves(params)
    assert {x.dtype for x in leaves} == {np.dtype(np.float32)}
    assert {x.dtype.itemsize for x in state.values()} == {2, 4}
    values = [np.sort(np.concatenate([np.ravel(x) for x in xs])) for xs in (leaves, state.values())]
    np.testing.assert_array_equal(*values)


def test_every_model_of_glide_is_told_apart_by_its_shapes(tmp_path, torch):
    configs = [shrink(c) for c in glide.RELEASED]
    for config in configs:
        path = torch_save(tmp_path / "a.pt", drawn(glide_layout(config)), torch)
        assert glide.load(path, configs)[0] is config
    one_line(path, "10 input channels", lambda path: glide.load(path, configs[:3]))


def test_models_of_adm_are_called_by_the_names_of_their_files(tmp_path, torch, monkeypatch):
    config = shrink(glide.ADM["lsun_cat"])
    monkeypatch.setitem(glide.ADM, "lsun_cat", config)
    path = torch_save(tmp_path / "lsun_cat.pt", drawn(layout_of(config)), torch)
    assert glide.load_adm(path)[0] is config
    one_line(path.rename(tmp_path / "cat.pt"), "which model.*lsun_cat.pt", glide.load_adm)


def test_memory_stays_near_one_copy():
    """Of float32, while reading half precision that is laid out anew, rows of qkv reordered."""
    names, shape = [f"a{i}" for i in range(40)], (512, 256)
    tensors = {f"{name}.weight": np.full(shape, 1, np.float16) for name in names}
    sources = {name: pretrained.source(name) for name in names}
    sources |= {name: pretrained.source(name, pretrained.by_head(2, heads=4)) for name in names[:4]}
    tracemalloc.start()
    params = pretrained.fill(
        "x",
        tensors,
        sources,
        lambda key: {name: {"kernel": jnp.zeros(shape[::-1])} for name in names},
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * sum(x.nbytes for x in jax.tree.leaves(params))


WRONG = {
    "missing": lambda s: s.pop("mid.attn_1.k.bias") is None,
    "left over": lambda s: s.update({"more.weight": FLAT}),
    "of another shape": lambda s: s.update({"conv_in.weight": s["conv_in.weight"][:, :2]}),
    "of another shape ": lambda s: s.update({"mid.attn_1.k.bias": FLAT}),
    "int32": lambda s: s.update({"conv_in.bias": s["conv_in.bias"].astype(np.int32)}),
}


@pytest.fixture(scope="module")
def ddpm_state():
    return drawn(ddpm_layout(shrink(sdedit_model.PAPER).unet))


@pytest.mark.parametrize("said", WRONG)
def test_a_tensor_too_many_too_few_or_of_another_shape_is_listed(tmp_path, torch, ddpm_state, said):
    config, state = shrink(sdedit_model.PAPER), OrderedDict(ddpm_state)
    WRONG[said](state)
    name = {"left over": "more.weight", "missing": "mid.attn_1.k.bias"}.get(said, "(conv_in|mid)")
    load_small = lambda path: sdedit.load(path, config)  # noqa: E731
    one_line(
        torch_save(tmp_path / "a.pt", state, torch),
        f"{said.strip()}.*{name}|{name}.*{said}",
        load_small,
    )


def test_weights_of_another_family_are_named(tmp_path, torch, ddpm_state):
    ddpm = torch_save(tmp_path / "64x64_classifier.pt", ddpm_state, torch)
    one_line(ddpm, "of a DDPM, not of GLIDE", glide.load)
    one_line(ddpm, "of a DDPM, not of an ADM classifier", glide.load_classifier)
    other = torch_save(tmp_path / "64x64_diffusion.pt", {"out.weight": FLAT}, torch)
    one_line(other, "of another model, not of a DDPM", sdedit.load)
    one_line(other, "of another model, not of an ADM diffusion model", glide.load_adm)


# What the official networks compute, in numpy and float64, channels first, from official names.


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def apply_linear(s, name, x):
    weight = s[f"{name}.weight"]
    return x @ weight.reshape(weight.shape[:2]).T + s[f"{name}.bias"]


def apply_conv(s, name, x, stride=1, padding=None):
    weight = s[f"{name}.weight"]
    k = weight.shape[-1]
    padding = padding or [(k // 2, k // 2)] * 2
    x = np.pad(x, [(0, 0), (0, 0), *padding])
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
    out = np.tensordot(windows, weight, ([1, 4, 5], [1, 2, 3]))
    return np.moveaxis(out + s[f"{name}.bias"], -1, 1)


def group_norm(s, name, x, eps=1e-5):
    groups = x.reshape(len(x), 32, -1)
    mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    x = ((groups - mean) / np.sqrt(variance + eps)).reshape(x.shape)
    shape = (1, -1, 1, 1)
    return x * s[f"{name}.weight"].reshape(shape) + s[f"{name}.bias"].reshape(shape)


def layer_norm(s, name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def attend(q, k, v, mask=0.0):
    """(N, length, heads, channels) each -> (N, length, heads channels)."""
    weight = softmax(np.einsum("nqhc,nkhc->nhqk", q, k) / q.shape[-1] ** 0.5 + mask)
    return np.einsum("nhqk,nkhc->nqhc", weight, v).reshape(*q.shape[:2], -1)


def split(x, heads, parts=3, new_order=False):
    """The rows of qkv: (part, head, channel) in the new order, else (head, part, channel)."""
    if new_order:
        x = x.reshape(*x.shape[:2], parts, heads, -1)
        return [x[:, :, i] for i in range(parts)]
    x = x.reshape(*x.shape[:2], heads, parts, -1)
    return [x[:, :, :, i] for i in range(parts)]


def upsample(x):
    return x.repeat(2, 2).repeat(2, 3)


def downsample(x):
    return (x[:, :, ::2] + x[:, :, 1::2])[..., ::2] / 4 + (x[:, :, ::2] + x[:, :, 1::2])[
        ..., 1::2
    ] / 4


def bilinear(x, size):
    """F.interpolate(mode="bilinear", align_corners=False)."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = np.maximum((np.arange(size) + 0.5) * n / size - 0.5, 0)
        low = at.astype(int)
        shape = [-1 if i == axis else 1 for i in range(4)]
        part = (at - low).reshape(shape)
        x = x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, n - 1), axis) * part
    return x


def adm_res(s, name, x, emb, resample=lambda x: x):
    h = resample(silu(group_norm(s, f"{name}.in_layers.0", x)))
    h, x = apply_conv(s, f"{name}.in_layers.2", h), resample(x)
    scale, shift = np.split(apply_linear(s, f"{name}.emb_layers.1", silu(emb)), 2, axis=1)
    h = group_norm(s, f"{name}.out_layers.0", h)
    h = silu(h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    if f"{name}.skip_connection.weight" in s:
        x = apply_conv(s, f"{name}.skip_connection", x)
    return x + apply_conv(s, f"{name}.out_layers.3", h)


def adm_attend(s, name, x, c, context, new_order, seen):
    if f"{name}.qkv.weight" not in s:
        return x
    heads = c.heads or x.shape[1] // c.head_dim
    h = np.moveaxis(group_norm(s, f"{name}.norm", x).reshape(*x.shape[:2], -1), 1, 2)
    q, k, v = split(apply_linear(s, f"{name}.qkv", h), heads, 3, new_order)
    if context is not None:
        first_k, first_v = split(apply_linear(s, f"{name}.encoder_kv", context), heads, 2)
        k, v = np.concatenate([first_k, k], 1), np.concatenate([first_v, v], 1)
    mask = 0.0
    if seen is not None:  # Karlo masks padding, GLIDE does not; what is in the picture is seen
        mask = np.where(np.pad(seen, [(0, 0), (0, h.shape[1])], constant_values=True), 0, -np.inf)
        mask = mask[:, None, None]
    h = apply_linear(s, f"{name}.proj_out", attend(q, k, v, mask))
    return x + np.moveaxis(h, 2, 1).reshape(x.shape)


def adm_network(s, c, x, t, label=None, vector=0.0, context=None, new_order=False, seen=None):
    """UNetModel, Text2ImUNet, EncoderUNetModel and Karlo's PLMImUNet; t counts from 0."""
    frequencies = np.exp(-np.log(10000) * np.arange(c.width // 2) / (c.width // 2))
    angles = np.asarray(t, float)[:, None] * frequencies
    emb = apply_linear(s, "time_embed.0", np.concatenate([np.cos(angles), np.sin(angles)], 1))
    emb = apply_linear(s, "time_embed.2", silu(emb)) + vector
    if label is not None:
        emb = emb + s["label_emb.weight"][label]
    h = apply_conv(s, "input_blocks.0.0", x)
    skips, n = [h], 1
    while f"input_blocks.{n}.0.in_layers.0.weight" in s:
        down = n % (c.blocks + 1) == 0
        h = adm_res(s, f"input_blocks.{n}.0", h, emb, *[downsample] * down)
        h = adm_attend(s, f"input_blocks.{n}.1", h, c, context, new_order, seen)
        skips.append(h)
        n += 1
    h = adm_res(s, "middle_block.0", h, emb)
    h = adm_attend(s, "middle_block.1", h, c, context, new_order, seen)
    h = adm_res(s, "middle_block.2", h, emb)
    for n, skip in enumerate([] if "out.2.qkv_proj.weight" in s else reversed(skips)):
        h = adm_res(s, f"output_blocks.{n}.0", np.concatenate([h, skip], 1), emb)
        h = adm_attend(s, f"output_blocks.{n}.1", h, c, context, new_order, seen)
        for last in (1, 2):
            if f"output_blocks.{n}.{last}.in_layers.0.weight" in s:
                h = adm_res(s, f"output_blocks.{n}.{last}", h, emb, upsample)
    h = silu(group_norm(s, "out.0", h))
    if "out.2.qkv_proj.weight" not in s:
        return apply_conv(s, "out.2", h)
    h = h.reshape(*h.shape[:2], -1)
    h = np.concatenate([h.mean(2, keepdims=True), h], 2) + s["out.2.positional_embedding"]
    qkv = apply_linear(s, "out.2.qkv_proj", np.moveaxis(h, 1, 2))
    h = attend(*split(qkv, h.shape[1] // c.head_dim, 3, new_order=True))
    return apply_linear(s, "out.2.c_proj", h)[:, 0]


def glide_text(s, c, ids, mask):
    """tokens and mask -> (tokens encoded, the last one projected)."""
    h = s["token_embedding.weight"][ids] + s["positional_embedding"]
    h = np.where(mask[..., None], h, s["padding_embedding"])
    for i in range(c.text.layers):
        name = f"transformer.resblocks.{i}"
        qkv = apply_linear(s, f"{name}.attn.c_qkv", layer_norm(s, f"{name}.ln_1", h))
        h = h + apply_linear(s, f"{name}.attn.c_proj", attend(*split(qkv, c.text.heads)))
        m = apply_linear(s, f"{name}.mlp.c_fc", layer_norm(s, f"{name}.ln_2", h))
        h = h + apply_linear(s, f"{name}.mlp.c_proj", m * (1 + erf(m / 2**0.5)) / 2)
    h = layer_norm(s, "final_ln", h)
    return h, apply_linear(s, "transformer_proj", h[:, -1])


def ddpm_res(s, name, x, emb):
    h = apply_conv(s, f"{name}.conv1", silu(group_norm(s, f"{name}.norm1", x, 1e-6)))
    h = h + apply_linear(s, f"{name}.temb_proj", silu(emb))[:, :, None, None]
    h = apply_conv(s, f"{name}.conv2", silu(group_norm(s, f"{name}.norm2", h, 1e-6)))
    if f"{name}.nin_shortcut.weight" in s:
        x = apply_conv(s, f"{name}.nin_shortcut", x)
    return x + h


def ddpm_attend(s, name, x):
    if f"{name}.q.weight" not in s:
        return x
    h = group_norm(s, f"{name}.norm", x, 1e-6)
    q, k, v = (apply_conv(s, f"{name}.{part}", h).reshape(*x.shape[:2], -1) for part in "qkv")
    weight = softmax(np.einsum("ncq,nck->nqk", q, k) * x.shape[1] ** -0.5)
    h = np.einsum("nqk,nck->ncq", weight, v).reshape(x.shape)
    return x + apply_conv(s, f"{name}.proj_out", h)


def ddpm_network(s, c, x, t):
    half, levels = c.width // 2, len(c.multipliers)
    angles = np.asarray(t, float)[:, None] * np.exp(-np.log(10000) * np.arange(half) / (half - 1))
    emb = apply_linear(s, "temb.dense.0", np.concatenate([np.sin(angles), np.cos(angles)], 1))
    emb = apply_linear(s, "temb.dense.1", silu(emb))
    skips = [apply_conv(s, "conv_in", x)]
    for level in range(levels):
        for i in range(c.blocks):
            h = ddpm_res(s, f"down.{level}.block.{i}", skips[-1], emb)
            skips.append(ddpm_attend(s, f"down.{level}.attn.{i}", h))
        if level + 1 < levels:
            name = f"down.{level}.downsample.conv"
            skips.append(apply_conv(s, name, skips[-1], 2, [(0, 1), (0, 1)]))
    h = ddpm_attend(s, "mid.attn_1", ddpm_res(s, "mid.block_1", skips[-1], emb))
    h = ddpm_res(s, "mid.block_2", h, emb)
    for level in reversed(range(levels)):
        for i in range(c.blocks + 1):
            h = np.concatenate([h, skips.pop()], 1)
            h = ddpm_res(s, f"up.{level}.block.{i}", h, emb)
            h = ddpm_attend(s, f"up.{level}.attn.{i}", h)
        if level:
            h = apply_conv(s, f"up.{level}.upsample.conv", upsample(h))
    return apply_conv(s, "conv_out", silu(group_norm(s, "norm_out", h, 1e-6)))


@pytest.fixture
def loaded(tmp_path, torch):
    """config -> (params out of a file, the same file's tensors in float64)."""

    def of(config):
        state = drawn(layout_of(config))
        params = load(torch_save(tmp_path / "a.pt", state, torch), config)
        return params, {k: x.astype(np.float64) for k, x in state.items()}

    return of


X, T = RNG(3).standard_normal((2, 3, 16, 16)), np.array([1, 700])


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32)


def assert_agree(denoise, cond, expected, x=X):
    """Given t, the network computes what the official one does of t - 1."""
    out = jax.jit(official(denoise))(nhwc(x), jnp.asarray(T), cond)
    out = out if isinstance(out, jax.Array) else jnp.concatenate([*out], -1)
    out = np.moveaxis(np.asarray(out), -1, 1) if out.ndim == 4 else np.asarray(out)
    assert out.shape == expected.shape and 0.1 < np.abs(expected).max() < 100
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_adm_in_the_new_order_of_attention_computes_what_the_official_network_does(loaded):
    """Three levels: attention where it stands before the upsampling, and where there is none."""
    config = shrink(glide.ADM["64x64_diffusion"], multipliers=(1, 2, 2))
    params, state = loaded(replace(config, size=16))
    label = np.array([4, 1])
    expected = adm_network(state, config.unet, X, T - 1, label, new_order=True)
    assert_agree(glide.adm_denoiser(config, params), {"label": jnp.asarray(label)}, expected)


def test_an_upsampler_of_adm_with_four_heads_computes_what_the_official_network_does(loaded):
    config = shrink(glide.ADM["64_256_upsampler"])
    params, state = loaded(config)
    label, x, low_res = np.array([4, 1]), X[..., :8, :8], X[:, :, 4:8, 4:8] + 1
    both = np.concatenate([x, bilinear(low_res, 8)], 1)
    expected = adm_network(state, config.unet, both, T - 1, label)
    cond = {"label": jnp.asarray(label), "low_res": nhwc(low_res)}
    assert_agree(glide.adm_denoiser(config, params), cond, expected, x)


def test_a_classifier_of_adm_computes_what_the_official_network_does(loaded):
    config = shrink(glide.CLASSIFIERS["512x512_classifier"])
    params, state = loaded(config)
    label, x = np.array([6, 2]), X[..., :8, :8]
    expected = np.log(softmax(adm_network(state, config.unet, x, T - 1)))[[0, 1], label]
    log_prob = classifier.log_prob(config, params)
    assert_agree(log_prob, {"label": jnp.asarray(label)}, expected, x)


def test_glide_upsampling_and_inpainting_computes_what_the_official_network_does(loaded):
    """With a short caption and one that fills all places."""
    config = shrink(model.PAPER_UPSAMPLER_INPAINT)
    params, state = loaded(config)
    x, known, low_res = X[..., :8, :8], X[..., 8:, 8:], X[:, :, 4:8, 4:8] + 1
    keep_mask = (RNG(4).random((2, 1, 8, 8)) > 0.5).astype(float)
    beside = [x, known * keep_mask, keep_mask, bilinear(low_res, 8)]
    ids = np.array([[0, 3, 10, 10, 10], [9, 9, 1, 2, 3]])  # 10, the last of them, is padding
    context, vector = glide_text(state, config, ids, ids != 10)
    expected = adm_network(
        state, config.unet, np.concatenate(beside, 1), T - 1, None, vector, context
    )
    cond = {"tokens": jnp.asarray(glide.tokens(config, ids)), "low_res": nhwc(low_res),
            "known": nhwc(np.concatenate(beside[1:3], 1))}  # fmt: skip
    assert_agree(model.denoiser(config, params), cond, expected, x)


def test_the_ddpm_of_sdedit_computes_what_the_official_network_does(loaded):
    config = shrink(sdedit_model.PAPER, multipliers=(1, 2, 2))
    params, state = loaded(replace(config, size=16))
    denoise = sdedit_model.denoiser(config, params)
    expected = ddpm_network(state, config.unet, X, T - 1)
    assert_agree(lambda x, t, cond: denoise(x, t, cond).eps, {}, expected)


def test_heads_are_put_in_our_order():
    """Two heads of two channels: rows q q k k v v of the first, then of the second."""
    rows = np.array(["q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1".split()] * 2).T
    ours = "q0 q0 q1 q1 k0 k0 k1 k1 v0 v0 v1 v1".split()
    for order in (pretrained.by_head(3, heads=2), pretrained.by_head(3, head_dim=2)):
        assert [list(row) for row in order(rows)] == [[name] * 2 for name in ours]
        assert list(order(rows[:, 0])) == ours
    assert (
        list(pretrained.by_head(2, heads=2)(np.array("k0 v0 k1 v1".split())))
        == "k0 k1 v0 v1".split()
    )
