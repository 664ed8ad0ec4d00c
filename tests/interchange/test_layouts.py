"""Weights of other programs, made under their published names and layouts: logits equal those of NumPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from builders import write

import jaxgen
from jaxgen.errors import DataError, JaxgenWarning, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.interchange.import_run import import_run
from jaxgen.interchange.layouts import NOTHING, Unrecorded
from jaxgen.runs.manifest import encode_arrays

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("quick_compiles")]

V, E, H, LAYERS = 11, 5, 6, 2
#: The vocabulary of the file, in an order that jaxgen's ids do not have.
TOKENS = ["b", "\n", "<eos>", "a", "d", "<unk>", "c", "f", "e", " ", "g"]
GATES = {"lstm": 4, "gru": 3, "elman": 1, "elman-relu": 1}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def torch_layer(kind, x, weights, layer):
    """One layer of nn.LSTM, nn.GRU or nn.RNN over x [T, D], by the equations of PyTorch's documentation."""
    w_ih, w_hh, b_ih, b_hh = (weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, c, states = np.zeros(H), np.zeros(H), []
    for step in x:
        z, u = w_ih @ step + b_ih, w_hh @ h + b_hh
        if kind == "lstm":
            i, f, g, o = np.split(z + u, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif kind == "gru":
            (r, zz, n), (ur, uz, un) = np.split(z, 3), np.split(u, 3)
            update = sigmoid(zz + uz)
            h = (1 - update) * np.tanh(n + sigmoid(r + ur) * un) + update * h
        else:
            h = np.tanh(z + u) if kind == "elman" else np.maximum(z + u, 0)
        states.append(h)
    return np.stack(states)


def torch_arrays(kind, embed=E, layers=LAYERS, seed=0):
    """The entries of a recurrent module, and its embedding and output, float32."""
    normal = np.random.default_rng(seed).normal
    rows, shapes = GATES[kind] * H, {}
    for i in range(layers):
        shapes |= {f"weight_ih_l{i}": (rows, H if i else embed), f"weight_hh_l{i}": (rows, H)}
        shapes |= {f"bias_ih_l{i}": (rows,), f"bias_hh_l{i}": (rows,)}
    rnn = {name: normal(scale=0.5, size=shape).astype(np.float32) for name, shape in shapes.items()}
    around = {"embedding": (V, embed), "weight": (V, H), "bias": (V,)}
    return rnn, {name: normal(size=shape).astype(np.float32) for name, shape in around.items()}


def torch_logits(kind, rnn, around, rows):
    x = around["embedding"][rows].astype(np.float64)
    for layer in range(LAYERS):
        x = torch_layer(kind, x, rnn, layer)
    return x @ around["weight"].T + around["bias"]


def write_weights(folder, arrays, about=None):
    (folder / "weights.safetensors").write_bytes(encode_arrays(arrays, about))
    (folder / "vocabulary.json").write_text(json.dumps(TOKENS))
    return str(folder / "weights.safetensors"), str(folder / "run"), str(folder / "vocabulary.json")


def import_here(path, run, vocabulary=None, unrecorded=NOTHING):
    """Import with a small text to continue with: the default one takes seconds to read."""
    import_run(path, run, vocabulary, [str(write(f"{run}-text.txt", "ab feed\n" * 500))], unrecorded)


def check_logits(run, prompt, expected):
    """The run's logits after a prompt equal those of the file's model, in its order."""
    sampler = Sampler.load(run)
    logits = np.asarray(sampler.read(prompt).logits[0])
    pieces = [*map(str.encode, TOKENS)]
    special, cap = {b"<eos>": 2, b"<unk>": 1}, sampler.task.model.soft_cap
    ids = [special.get(piece) or sampler.tokenizer.pieces.index(piece) for piece in pieces]
    np.testing.assert_allclose(logits[ids], expected, rtol=2e-5, atol=2e-5)
    others = [i for i in range(logits.size) if i not in ids]
    assert (logits[others] <= (-cap or -1e8)).all()  # <pad>, which the file's model does not have


NAMES = {
    "word_language_model": ("rnn.", "encoder.weight", "decoder.weight", "decoder.bias"),
    "usual": ("lstm.", "embedding.weight", "fc.weight", "fc.bias"),
    "wrapped": ("module.gru.", "module.embed.weight", "module.lm_head.weight", "module.lm_head.bias"),
}
MODELS = [("lstm", "word_language_model"), ("gru", "wrapped"), ("elman", "usual"), ("elman-relu", "usual")]


def named(names, rnn, around):
    prefix, *others = NAMES[names]
    return {f"{prefix}{name}": array for name, array in rnn.items()} | dict(zip(others, around.values()))


@pytest.mark.parametrize(("kind", "names"), MODELS)
def test_a_pytorch_model_is_imported(kind, names, tmp_path):
    rnn, around = torch_arrays(kind)
    path, run, vocabulary = write_weights(tmp_path, named(names, rnn, around))
    import_here(path, run, vocabulary, unrecorded=Unrecorded("elman-relu" if kind == "elman-relu" else None))
    prompt = "ab\nfeed"
    rows = [2, *(TOKENS.index(character) for character in prompt)]  # a text begins after <eos>
    check_logits(run, prompt, torch_logits(kind, rnn, around, rows)[-1])


def test_a_tied_model_in_half_precision_is_imported(tmp_path):
    rnn, around = torch_arrays("lstm", embed=H)
    half = {name: array.astype(np.float16) for name, array in named("usual", rnn, around).items()}
    del half["fc.weight"]  # as safetensors writes a tied model
    path, run, vocabulary = write_weights(tmp_path, half)
    import_here(path, run, vocabulary)
    rnn, around = ({name: a.astype(np.float16).astype(float) for name, a in each.items()} for each in (rnn, around))
    around["weight"] = around["embedding"]
    check_logits(run, "ab", torch_logits("lstm", rnn, around, [2, 3, 0])[-1])


def test_a_byte_model_is_imported_and_trained_further(tmp_path, book):
    rnn, around = torch_arrays("lstm", layers=1)
    around = {name: np.resize(a, (256, *a.shape[1:])) for name, a in around.items()}
    path, run, _ = write_weights(tmp_path, named("usual", rnn, around))
    text = write(tmp_path / "book.txt", 5 * book.read_text())
    import_run(path, run, "byte", [str(text)])
    params = LoadedRun.open(run).params()[1]
    np.testing.assert_array_equal(params["embedding"][3:], around["embedding"])
    config = LoadedRun.open(run).config.model_copy(update={"steps": 2})
    jaxgen.resume(run, config).train()
    assert LoadedRun.open(run).checkpoints.latest() == 2
    assert not np.array_equal(LoadedRun.open(run).params()[1]["embedding"][3:], around["embedding"])
    more = {"level": "byte", "cell": "lstm", "hidden": H, "embed": E, "steps": 1, "data": (str(text),)}
    other = jaxgen.LanguageConfig(**more, init_from=run, run=str(tmp_path / "other"))
    jaxgen.start(other).train()
    assert LoadedRun.open(tmp_path / "other").checkpoints.latest() == 1


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def gelu(x, exact=False):
    cubic = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x * (0.5 * (1 + (np.vectorize(math.erf)(x / np.sqrt(2)) if exact else np.tanh(cubic))))


def random_arrays(shapes, seed):
    normal = np.random.default_rng(seed).normal
    return {name: normal(scale=0.6, size=shape).astype(np.float32) for name, shape in shapes.items()}


def gemma_arrays(width=6, inner=4, heads=2, mlp=9, conv=3, layers=2):
    """The arrays of a RecurrentGemma of recurrent blocks under the names of its PyTorch code."""
    shapes = {"embedder.input_embedding": (V, width), "final_norm.scale": (width,)}
    for i in range(layers):
        recurrent, network, n = f"blocks.{i}.recurrent_block.", f"blocks.{i}.mlp_block.", inner // heads
        for branch in "xy":
            shapes |= {
                f"{recurrent}linear_{branch}.weight": (inner, width),
                f"{recurrent}linear_{branch}.bias": (inner,),
            }
        shapes |= {f"{recurrent}linear_out.weight": (width, inner), f"{recurrent}linear_out.bias": (width,)}
        shapes |= {f"{recurrent}conv_1d.w": (conv, inner), f"{recurrent}conv_1d.b": (inner,)}
        shapes |= {f"{recurrent}rg_lru.a_param": (inner,)}
        for gate in ("input_gate", "a_gate"):
            shapes |= {f"{recurrent}rg_lru.{gate}.w": (heads, n, n), f"{recurrent}rg_lru.{gate}.b": (heads, n)}
        shapes |= {f"blocks.{i}.{norm}.scale": (width,) for norm in ("temporal_pre_norm", "channel_pre_norm")}
        shapes |= {f"{network}ffw_up.w": (2, width, mlp), f"{network}ffw_up.b": (2, 1, 1, mlp)}
        shapes |= {f"{network}ffw_down.weight": (width, mlp), f"{network}ffw_down.bias": (width,)}
    return random_arrays(shapes, 1)


def gemma_logits(arrays, rows, scale, soft_cap, layers=2):
    """The logits [V] after tokens, by the equations of the Griffin paper."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    x = w["embedder.input_embedding"][rows] * scale
    for i in range(layers):
        name = f"blocks.{i}."
        recurrent, network = f"{name}recurrent_block.", f"{name}mlp_block."
        y = rms_norm(x, 1 + w[f"{name}temporal_pre_norm.scale"])
        gate = gelu(y @ w[f"{recurrent}linear_y.weight"].T + w[f"{recurrent}linear_y.bias"])
        y = y @ w[f"{recurrent}linear_x.weight"].T + w[f"{recurrent}linear_x.bias"]
        kernel = w[f"{recurrent}conv_1d.w"]
        padded = np.concatenate([np.zeros((len(kernel) - 1, y.shape[1])), y])
        y = (
            np.stack([(padded[t : t + len(kernel)] * kernel).sum(0) for t in range(len(y))])
            + w[f"{recurrent}conv_1d.b"]
        )
        gates = {}
        for each in ("input_gate", "a_gate"):
            blocks = w[f"{recurrent}rg_lru.{each}.w"]
            parts = np.split(y, len(blocks), axis=-1)
            joined = np.concatenate([part @ block for part, block in zip(parts, blocks)], axis=-1)
            gates[each] = sigmoid(joined + w[f"{recurrent}rg_lru.{each}.b"].reshape(-1))
        a = np.exp(-8 * gates["a_gate"] * np.log1p(np.exp(w[f"{recurrent}rg_lru.a_param"])))
        h, states = np.zeros(y.shape[1]), []
        for t in range(len(y)):
            h = a[t] * h + np.sqrt(1 - a[t] ** 2) * gates["input_gate"][t] * y[t]
            states.append(h)
        x = x + (np.stack(states) * gate) @ w[f"{recurrent}linear_out.weight"].T + w[f"{recurrent}linear_out.bias"]
        y = rms_norm(x, 1 + w[f"{name}channel_pre_norm.scale"])
        up, bias = w[f"{network}ffw_up.w"], w[f"{network}ffw_up.b"].reshape(2, -1)
        y = gelu(y @ up[0] + bias[0]) * (y @ up[1] + bias[1])
        x = x + y @ w[f"{network}ffw_down.weight"].T + w[f"{network}ffw_down.bias"]
    logits = rms_norm(x, 1 + w["final_norm.scale"])[-1] @ w["embedder.input_embedding"].T
    return soft_cap * np.tanh(logits / soft_cap) if soft_cap else logits


@pytest.mark.parametrize(("inner", "unrecorded"), [(6, NOTHING), (4, Unrecorded(scale_embedding=True, soft_cap=3.0))])
def test_a_recurrentgemma_of_recurrent_blocks_is_imported(inner, unrecorded, tmp_path):
    arrays = gemma_arrays(inner=inner)
    path, run, vocabulary = write_weights(tmp_path, arrays)
    with pytest.warns(JaxgenWarning, match="first token"):
        import_here(path, run, vocabulary, unrecorded=unrecorded)
    rows = [2, *(TOKENS.index(character) for character in "ab\nfeed")]
    scale = 2.453125 if unrecorded.scale_embedding else 1  # sqrt(6) in bfloat16
    check_logits(run, "ab\nfeed", gemma_logits(arrays, rows, scale, unrecorded.soft_cap))


def mingru_arrays(norm, width=6, inner=9, mlp=12, layers=2):
    """The arrays of a minGRU language model under the names of minGRU-pytorch, whose older norms have ``gamma``."""
    shapes = {"token_emb.weight": (V, width), "to_logits.weight": (V, width), f"norm.{norm}": (width,)}
    for i in range(layers):
        shapes |= {f"layers.{i}.{place}.{norm}": (width,) for place in (1, 3)}
        shapes |= {f"layers.{i}.2.to_hidden_and_gate.weight": (2 * inner, width)}
        shapes |= {f"layers.{i}.2.to_out.weight": (width, inner)} if inner != width else {}
        shapes |= {f"layers.{i}.4.0.weight": (mlp, width), f"layers.{i}.4.0.bias": (mlp,)}
        shapes |= {f"layers.{i}.4.2.weight": (width, mlp), f"layers.{i}.4.2.bias": (width,)}
    return random_arrays(shapes, 2)


def mingru_logits(arrays, rows, norm, layers=2):
    """The logits [V] after tokens, by the equations of the minGRU paper (section 3.1 and appendix B)."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}

    def normed(x, name):
        return rms_norm(x, w[f"{name}.{norm}"] + (norm == "gamma"))

    x = w["token_emb.weight"][rows]
    for i in range(layers):
        name = f"layers.{i}."
        hidden, gate = np.split(normed(x, f"{name}1") @ w[f"{name}2.to_hidden_and_gate.weight"].T, 2, axis=-1)
        z, candidate = sigmoid(gate), np.where(hidden >= 0, hidden + 0.5, sigmoid(hidden))
        h, states = np.zeros(z.shape[1]), []
        for t in range(len(z)):
            h = (1 - z[t]) * h + z[t] * candidate[t]
            states.append(h)
        y = np.stack(states)
        x = x + (y @ w[f"{name}2.to_out.weight"].T if f"{name}2.to_out.weight" in w else y)
        y = gelu(normed(x, f"{name}3") @ w[f"{name}4.0.weight"].T + w[f"{name}4.0.bias"], exact=True)
        x = x + y @ w[f"{name}4.2.weight"].T + w[f"{name}4.2.bias"]
    return normed(x, "norm")[-1] @ w["to_logits.weight"].T


@pytest.mark.parametrize(("norm", "inner"), [("gamma", 9), ("weight", 6)])
def test_a_mingru_model_is_imported(norm, inner, tmp_path):
    arrays = mingru_arrays(norm, inner=inner)
    path, run, vocabulary = write_weights(tmp_path, arrays)
    import_here(path, run, vocabulary)
    rows = [2, *(TOKENS.index(character) for character in "ab\nfeed")]
    check_logits(run, "ab\nfeed", mingru_logits(arrays, rows, norm))


@pytest.mark.filterwarnings("ignore:RecurrentGemma")
@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({**gemma_arrays(), "blocks.2.attention_block.proj_q.weight": np.ones((6, 6), np.float32)}, "attention"),
        ({**gemma_arrays(), "blocks.1.recurrent_block.rg_lru.a_gate.w": np.ones((3, 2, 2), np.float32)}, "a_gate.b"),
        ({**gemma_arrays(), "blocks.1.recurrent_block.conv_1d.w": np.ones((7, 4), np.float32)}, "convolution"),
        ({**gemma_arrays(), "blocks.0.mlp_block.ffw_up.w": np.ones((2, 6, 8), np.float32)}, "ffw_up.b"),
        ({**gemma_arrays(), "final_norm.scale": np.ones((0,), np.float32)}, "empty"),
        ({**mingru_arrays("gamma"), "layers.0.0.net.0.weight": np.ones((6, 1, 3), np.float32)}, "net"),
        ({**mingru_arrays("gamma"), "layers.1.2.to_out.weight": np.ones((6, 8), np.float32)}, "to_out"),
    ],
)
def test_published_blocks_that_do_not_fit_are_refused(arrays, word, tmp_path):
    path, run, vocabulary = write_weights(tmp_path, arrays)
    with pytest.raises(DataError, match=word):
        import_here(path, run, vocabulary)


LSTM = named("usual", *torch_arrays("lstm"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lstm.weight_hh_l1": None}, "weight_hh_l1"),
        ({"embedding.weight": None}, "embedding.weight"),
        ({"fc.weight": None}, "output"),
        ({"norm.weight": np.ones(3, np.float32)}, "norm.weight"),
        ({"fc.weight": np.ones((V, H + 1), np.float32)}, "fc.weight"),
        ({"lstm.weight_hh_l0": np.ones((7, 3), np.float32)}, "none of"),
        ({"lstm.weight_hh_l0": np.ones((0, 0), np.float32)}, "empty"),
        ({"lstm.weight_hh_l0": np.ones(4, np.float32)}, "shape"),
        ({"lstm.weight_hr_l0": np.ones((3, H), np.float32)}, "proj_size"),
        ({"lstm.weight_ih_l0_reverse": np.ones((4 * H, E), np.float32)}, "bidirectional"),
        ({"second.weight_hh_l0": np.ones((4 * H, H), np.float32)}, "several"),
        ({"decoder.weight": np.ones((V, H), np.float32)}, "several"),
        ({"fc.bias": np.full(V, np.nan, np.float32)}, "finite"),
        ({"fc.bias": np.full(V, 1e300)}, "finite"),
        ({"fc.bias": np.ones(V, np.int8)}, "int8"),
        (dict.fromkeys(LSTM) | {"h.0.attn.weight": np.ones((2, 2), np.float32)}, "no model"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, word, tmp_path):
    arrays = {name: array for name, array in {**LSTM, **change}.items() if array is not None}
    path, run, vocabulary = write_weights(tmp_path, arrays)
    with pytest.raises(DataError, match=word):
        import_here(path, run, vocabulary)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (json.dumps(TOKENS[1:]), "10 tokens"),
        (json.dumps([*TOKENS[1:], "a"]), "twice"),
        (json.dumps([*TOKENS[1:], "a b"]), "not a word"),
        (json.dumps([*TOKENS[1:], ""]), "not a word"),
        (json.dumps([*TOKENS[1:], 7]), "list of tokens"),
        (json.dumps({"kind": "char", "code_points": [97]}), "4 tokens"),
        (json.dumps({"kind": "letters"}), "tokenizer"),
        ("[" * 10**5, "nested"),
        ("no JSON", "Expecting"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(content, word, tmp_path):
    path, run, vocabulary = write_weights(tmp_path, LSTM)
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(DataError, match=word):
        import_here(path, run, vocabulary)


def test_metadata_of_other_programs_are_not_read(tmp_path):
    path, run, _ = write_weights(tmp_path, LSTM, {"tokenizer": "bert-base", "format": "pt"})
    with pytest.raises(DataError, match="the model has 11"):
        import_here(path, run, "byte")


def test_without_a_vocabulary_there_is_no_run(tmp_path):
    path, run, _ = write_weights(tmp_path, LSTM)
    with pytest.raises(UsageError, match="--tokenizer"):
        import_here(path, run)
    with pytest.raises(DataError, match="cannot be read"):
        import_run(str(tmp_path / "missing.safetensors"), run, "byte")
    with pytest.raises(DataError, match="missing"):
        import_here(path, run, str(tmp_path / "missing.json"))


def header(content: object, size: int | None = None) -> bytes:
    data = json.dumps(content).encode()
    return (len(data) if size is None else size).to_bytes(8, "little") + data


def about(**settings) -> bytes:
    """A file without arrays that seems to be jaxgen's."""
    return header({"__metadata__": {"settings": json.dumps(settings), "tokenizer": '{"kind": "byte"}'}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}q\x00.",
        header({}, 2**63),
        header({}, 2**31) + b" " * 100,
        header({"lstm.weight_hh_l0": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}) + b"1234",
        header({"lstm.weight_hh_l0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}) + b"1234",
        header({"lstm.weight_hh_l0": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}) + b"12345678",
        header({"__metadata__": {"settings": "{}"}}),
        header({"__metadata__": {"settings": "{", "tokenizer": "{}"}}),
        header({"__metadata__": {"settings": "{}", "tokenizer": "{"}}),
        about(data=["/etc/passwd"]),
        about(hidden=1e9),
        about(hidden=65536, layers=64),
        about(cell_options={"forget_bias": "x"}),
        about(cell="transformer"),
        about(level="word"),
    ],
)
def test_a_hostile_file_is_refused_with_a_sentence(data, tmp_path):
    (tmp_path / "weights").write_bytes(data)
    with pytest.raises(DataError, match=r"\."):
        import_run(str(tmp_path / "weights"), str(tmp_path / "run"), None if b"tokenizer" in data else "byte")
    assert not (tmp_path / "run").exists()
