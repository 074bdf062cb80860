"""Bad input: exit code 2, one sentence that names the value and the mend, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scalekv.planning import Profile, Schedule

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "infinity" / "plain_square"

GENERATE = {
    "budget zero": (["a", "--budget", "0"], "budget '0'"),
    "budget negative": (["a", "--budget=-1"], "budget '-1'"),
    "budget above all": (["a", "--budget", "300%"], "300%"),
    "budget zero percent": (["a", "--budget", "0%"], "0%"),
    "budget word": (["a", "--budget", "abc"], "'abc'"),
    "budget bare integer": (["a", "--budget", "10"], "'10'"),
    "budget nan": (["a", "--budget", "nan"], "'nan'"),
    "budget empty": (["a", "--budget", ""], "budget ''"),
    "budget unknown unit": (["a", "--budget", "5 parsecs"], "'5 parsecs'"),
    "size zero": (["a", "--size", "0x0"], "'0x0'"),
    "size word": (["a", "--size", "huge"], "'huge'"),
    "size half": (["a", "--size", "17x"], "'17x'"),
    "size negative": (["a", "--size=-64x64"], "'-64x64'"),
    "size fraction": (["a", "--size", "1.5x2"], "'1.5x2'"),
    "size empty": (["a", "--size", ""], "size ''"),
    "size and aspect": (["a", "--size", "512x512", "--aspect", "1:1"], "--aspect 1:1"),
    "aspect zero": (["a", "--aspect", "0"], "aspect '0'"),
    "aspect word": (["a", "--aspect", "abc"], "'abc'"),
    "aspect zero side": (["a", "--aspect", "16:0"], "'16:0'"),
    "aspect negative": (["a", "--aspect=-1:1"], "'-1:1'"),
    "aspect three": (["a", "--aspect", "1:2:3"], "'1:2:3'"),
    "model unknown": (["a", "--model", "infinity-3b"], "'infinity-3b'"),
    "model missing folder": (["a", "--model", "./nowhere"], "'./nowhere'"),
    "model without weights here": (["a", "--model", "infinity-2b"], "infinity_2b_reg.pth"),
    "policy unknown": (["a", "--policy", "magic"], "'magic'"),
    "dtype unknown": (["a", "--dtype", "float31"], "'float31'"),
    "device unknown": (["a", "--device", "quantum"], "'quantum'"),
    "device not here": (["a", "--device", "cuda:99"], "'cuda:99'"),
    "seed word": (["a", "--seed", "lucky"], "'lucky'"),
    "seed negative": (["a", "--seed=-1"], "-1"),
    "seed too large": (["a", "--seed", str(2**63)], str(2**63)),
    "count zero": (["a", "-n", "0"], "-n is 0"),
    "count word": (["a", "-n", "two"], "'two'"),
    "prompt empty": ([""], "prompt is empty"),
    "prompt blank": (["a", "  "], "prompt is empty"),
    "no prompt": ([], "PROMPT"),
    "out missing folder": (["a", "--out", "nowhere/a.png"], "no folder"),
    "out missing folder with slash": (["a", "--out", "nowhere/"], "no folder"),
    "out text file": (["a", "--out", "a.txt"], "a.txt"),
    "out under a file": (["a", "--out", "note.txt/a.png"], "not a folder"),
    "out unwritable": (["a", "--out", "/proc/a.png"], "/proc"),
    "out empty": (["a", "--out", ""], "--out is empty"),
    "out unknown field": (["a", "--out", "{name}.png"], "{name}"),
    "out one name for two": (["a", "b", "--out", "x.png/../{prompt}.png", "-n", "2"], "--out"),
    "out same name": (["a", "-n", "2", "--out", "{prompt}.png"], "{index}"),
    "guidance nan": (["a", "--guidance", "nan"], "nan"),
    "guidance negative": (["a", "--guidance=-1"], "-1"),
    "guidance word": (["a", "--guidance", "much"], "'much'"),
    "temperature zero": (["a", "--temperature", "0"], "above 0"),
    "temperature infinite": (["a", "--temperature", "inf"], "inf"),
    "temperature tiny": (["a", "--temperature", "1e-40"], "--temperature is 1e-40"),
    "temperature huge": (["a", "--temperature", "1e9"], "from 0.001 to 1000"),
    "guidance huge": (["a", "--guidance", "1e308"], "--guidance is 1e+308; expected a number from 0 to 1000"),
    "prompt no text": (["\udcff bad"], "'\\udcff bad' is no text"),
    "negative no text": (["a", "--negative", "\udcff"], "--negative '\\udcff' is no text"),
    "class no text": (["--class", "\udcff"], "'\\udcff' is no text"),
    "count endless": (["a", "-n", "9" * 30], "1 to 10000 images"),
    "out too long": (["a", "--out", "x" * 300 + ".png"], "name too long"),
    "out prompt too long": (["a", "--out", "x" * 245 + "-{prompt}{seed}.png", "--seed", "123"], "name too long"),
    "out folder too long": (["a", "--out", "x" * 300 + "/a.png"], "name too long"),
    "out unknown home": (["a", "--out", "~nobody-here/a.png"], "~nobody-here"),
    "model unknown home": (["a", "--model", "~nobody-here/m"], "~nobody-here"),
    "model too long": (["a", "--model", "x" * 300], "name too long"),
    "profile too long": (["a", "--profile", "x" * 300], "name too long"),
    "size endless": (["a", "--size", "9" * 5000 + "x1"], "Cannot read the size"),
    "top-k negative": (["a", "--top-k=-1"], "-1"),
    "top-p two": (["a", "--top-p", "2"], "--top-p is 2"),
    "profile missing": (["a", "--profile", "nowhere.json"], "nowhere.json"),
    "profile no name": (
        ["a", "--profile", "infinity-9b"],
        "infinity-9b: no file is called so, and the built-in ones are",
    ),
    "profile no json": (["a", "--profile", "note.txt"], "note.txt"),
    "profile no profile": (["a", "--profile", "other.json"], "other.json"),
    "profile of another version": (["a", "--profile", "future.json"], "version 99"),
    "profile damaged": (["a", "--profile", "damaged.json"], "damaged"),
    "unknown option": (["a", "--budgett", "1%"], "--budgett"),
}

PLAN = {
    "memory zero": (["--memory", "0GB"], "'0GB'"),
    "memory word": (["--memory", "lots"], "'lots'"),
    "memory bare number": (["--memory", "24"], "'24'"),
    "memory negative": (["--memory=-1GB"], "'-1GB'"),
    "memory endless": (["--memory", "9" * 400 + "TB"], "--memory is"),
    "guidance huge": (["--guidance", "1e308"], "from 0 to 1000"),
    "batch zero": (["--batch", "0"], "--batch is 0"),
    "model unknown": (["--model", "infinity-3b"], "'infinity-3b'"),
    "model missing folder": (["--model", "a/b/c"], "a/b/c"),
    "model empty folder": (["--model", "empty"], "empty"),
    "model text file": (["--model", "note.txt"], "note.txt"),
    "budget too small": (["--budget", "1B"], "smallest feasible"),
    "budget too small for full": (["--policy", "full", "--budget", "10%"], "smallest feasible"),
    "profile of another model": (["--profile", "tiny.json"], "6 layers"),
    "dtype": (["--dtype", "int8"], "'int8'"),
    "size": (["--size", "2M"], "'2M'"),
}

CALIBRATE = {
    "prompts missing": (["nowhere.txt", "--out", "p.json"], "nowhere.txt"),
    "prompts empty": (["blank.txt", "--out", "p.json"], "no prompts"),
    "prompts a folder": (["empty", "--out", "p.json"], "empty"),
    "prompts binary": (["binary.bin", "--out", "p.json"], "binary.bin"),
    "prompts with zero bytes": (["zeros.bin", "--out", "p.json"], "zeros.bin"),
    "out suffix": (["note.txt", "--out", "p.txt"], "p.txt"),
    "out missing folder": (["note.txt", "--out", "nowhere/p.json"], "nowhere"),
    "out is a folder": (["note.txt", "--out", "folder.json"], "folder.json"),
    "map would replace a picture": (["note.txt", "--out", "photo.json"], "photo.png exists"),
    "map is a folder": (["note.txt", "--out", "album.json"], "album.png"),
    "out is other json": (["note.txt", "--out", "other.json"], "other.json exists and is no profile"),
    "out too long": (["note.txt", "--out", f"{'x' * 300}.json"], "name too long"),
    "no out": (["note.txt"], "--out"),
    "queries zero": (["note.txt", "--out", "p.json", "--queries", "0"], "--queries is 0"),
    "add to nothing": (["note.txt", "--out", "p.json", "--add-to", "nowhere.json"], "nowhere.json"),
    "add to other json": (["note.txt", "--out", "p.json", "--add-to", "other.json"], "other.json"),
    "add to another model": (["note.txt", "--out", "p.json", "--add-to", "tiny.json"], "does not tell which prompts"),
    "seed negative": (["note.txt", "--out", "p.json", "--seed=-5"], "-5"),
    "size word": (["note.txt", "--out", "p.json", "--size", "big"], "'big'"),
}

WEIGHTS, VAE = str(GOLDEN / "weights.safetensors"), str(GOLDEN / "vae.safetensors")
STABILITY = {
    "nothing": ([], "argument"),
    "one profile": (["tiny.json"], "two or more"),
    "one profile twice": (["tiny.json", "tiny.json"], "named twice"),
    "missing": (["tiny.json", "nowhere.json"], "nowhere.json"),
    "other models": (["infinity-2b", "infinity-8b"], "differ in model"),
    "budget word": (["tiny.json", "infinity-2b", "--budget", "much"], "'much'"),
}

CONVERT = {
    "source missing": (["nowhere.pth", "--vae", VAE, "--out", "new"], "nowhere.pth"),
    "vae missing": ([WEIGHTS, "--vae", "nowhere.pth", "--out", "new"], "nowhere.pth"),
    "no vae": ([WEIGHTS, "--out", "new"], "--vae"),
    "vae is a transformer": ([WEIGHTS, "--vae", WEIGHTS, "--out", "new"], "weights.safetensors"),
    "transformer is a vae": ([VAE, "--vae", VAE, "--out", "new"], "vae.safetensors"),
    "out exists": ([WEIGHTS, "--vae", VAE, "--out", "full"], "choose another --out, or replace it with --overwrite."),
    "patch nums": ([WEIGHTS, "--vae", VAE, "--out", "new", "--patch-nums", "1,x"], "--patch-nums is '1,x'"),
    "patch nums zero": ([WEIGHTS, "--vae", VAE, "--out", "new", "--patch-nums", "0,1"], "such as '1,2,3,4'"),
    "patch nums of infinity": ([WEIGHTS, "--vae", VAE, "--out", "new", "--patch-nums", "1,2"], "an Infinity model"),
    "heads zero": ([WEIGHTS, "--vae", VAE, "--out", "new", "--num-heads", "0"], "--num-heads is 0"),
    "heads of infinity": (
        [WEIGHTS, "--vae", VAE, "--out", "new", "--num-heads", "2"],
        "leave patch_nums and num_heads",
    ),
    "out too long": ([WEIGHTS, "--vae", VAE, "--out", "x" * 300], "name too long"),
    "shard size of dots": ([WEIGHTS, "--vae", VAE, "--out", "new", "--max-shard-size", "....KB"], "'....KB'"),
    "shard size endless": ([WEIGHTS, "--vae", VAE, "--out", "new", "--max-shard-size", "9" * 400 + "TB"], "--max-"),
    "out is a file": ([WEIGHTS, "--vae", VAE, "--out", "note.txt", "--overwrite"], "note.txt"),
    "out in a missing folder": ([WEIGHTS, "--vae", VAE, "--out", "a/b"], "no folder"),
    "model unknown": ([WEIGHTS, "--vae", VAE, "--out", "new", "--model", "infinity-9b"], "infinity-9b"),
    "model of another shape": ([WEIGHTS, "--vae", VAE, "--out", "new", "--model", "infinity-2b"], "infinity-2b"),
    "shard size": ([WEIGHTS, "--vae", VAE, "--out", "new", "--max-shard-size", "huge"], "'huge'"),
    "dtype": ([WEIGHTS, "--vae", VAE, "--out", "new", "--dtype", "int4"], "'int4'"),
    "truncated": (["cut.safetensors", "--vae", VAE, "--out", "new"], "cut.safetensors"),
}

INFO = {
    "missing": (["nowhere"], "nowhere"),
    "too long": (["x" * 300], "name too long"),
    "empty file": (["blank.txt"], "blank.txt"),
    "empty folder": (["empty"], "empty"),
    "truncated": (["cut.safetensors"], "cut.safetensors"),
    "pointer": (["pointer.pth"], "pointer.pth"),
    "text": (["note.txt"], "note.txt"),
    "other json": (["other.json"], "other.json"),
    "nothing": ([], "argument"),
}

OTHER = {
    "unknown command": (["draw"], "draw"),
    "option before the command": (["--budget", "plan"], "--budget"),
    "methods takes nothing": (["methods", "more"], "more"),
}

CASES = {
    **{f"generate: {name}": (["generate", *words], text) for name, (words, text) in GENERATE.items()},
    **{f"plan: {name}": (["plan", *words], text) for name, (words, text) in PLAN.items()},
    **{f"calibrate: {name}": (["calibrate", *words], text) for name, (words, text) in CALIBRATE.items()},
    **{f"stability: {name}": (["stability", *words], text) for name, (words, text) in STABILITY.items()},
    **{f"convert: {name}": (["convert", *words], text) for name, (words, text) in CONVERT.items()},
    **{f"info: {name}": (["info", *words], text) for name, (words, text) in INFO.items()},
    **OTHER,
}


@pytest.fixture
def clutter(folder: Path) -> Path:
    """Files that are not what a command wants."""
    (folder / "empty").mkdir()
    (folder / "folder.json").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("mine")
    (folder / "album.png").mkdir()
    (folder / "photo.png").write_text("mine")
    (folder / "note.txt").write_text("a lighthouse\n")
    (folder / "blank.txt").write_text("\n  \n")
    (folder / "binary.bin").write_bytes(bytes(range(128, 256)))
    (folder / "zeros.bin").write_bytes(b"a\0b\n")
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "cut.safetensors").write_bytes((GOLDEN / "weights.safetensors").read_bytes()[:5000])
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    profile = Profile("tiny", 6, 4, Schedule.from_sides((1, 2)))
    profile.save(folder / "tiny.json")
    written = json.loads((folder / "tiny.json").read_text())
    (folder / "future.json").write_text(json.dumps({**written, "format_version": 99}))
    (folder / "damaged.json").write_text(json.dumps({**written, "schedule": [[0, 0]]}))
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input must be noticed before a model is loaded."""

    def loaded(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr("scalekv.pipelines.load_pipeline", loaded, raising=False)
    monkeypatch.setattr("scalekv.pipelines.tiny_pipeline", loaded, raising=False)


def tree(folder: Path) -> dict[str, int]:
    """Every file and folder, with its size."""
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("words", "named"), CASES.values(), ids=CASES.keys())
def test_bad_input(run: Callable, clutter: Path, words: list[str], named: str) -> None:
    before = tree(clutter)
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    sentence = result.stderr.removeprefix("Converting").partition("Error: ")[2] or result.stderr
    assert "Error: " in result.stderr
    assert sentence.count("\n") == 1
    assert sentence.endswith(".\n")
    assert named in sentence
    assert "Traceback" not in result.output
    assert tree(clutter) == before


def test_there_are_many_kinds() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize(
    "words",
    [["generate", "a", "--budget", "abc"], ["plan", "--batch", "x"], ["info", "nowhere"], ["generate", "--nonsense"]],
)
def test_with_json_the_error_is_an_object(run: Callable, words: list[str]) -> None:
    result = run(*words, "--json")
    assert result.exit_code == 2
    sentence = json.loads(result.stdout)["error"]
    assert result.stderr == f"Error: {sentence}\n"


def test_profile_of_another_model_is_refused_by_a_run(run: Callable, clutter: Path) -> None:
    Profile("other", 3, 2, Schedule.from_sides((1, 2)), statistics={"asi": ((0.0,) * 3,) * 2}).save("wrong.json")
    before = tree(clutter)
    result = run("generate", "a", "--profile", "wrong.json", "--out", "a.png")
    assert result.exit_code == 2
    assert "3 layers, 2 heads" in result.stderr
    assert tree(clutter) == before


def test_budget_that_no_plan_meets(run: Callable, clutter: Path) -> None:
    before = tree(clutter)
    result = run("generate", "a", "--budget", "1B", "--out", "a.png")
    assert result.exit_code == 2
    assert "smallest feasible" in result.stderr
    assert tree(clutter) == before


def test_size_that_the_model_does_not_draw(run: Callable, folder: Path) -> None:
    result = run("generate", "a", "--size", "1M")
    assert result.exit_code == 2
    assert "1M" in result.stderr
    assert not tree(folder)


def test_folder_without_text_encoder(run: Callable, folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text('{"text_encoder": [null, null]}')
    result = run("generate", "a", "--model", "model")
    assert result.exit_code == 2
    assert "--text-encoder" in result.stderr


def test_folder_cut_short(run: Callable, folder: Path, tiny_folder: Path) -> None:
    import shutil

    shutil.copytree(tiny_folder, folder / "model")
    weights = next((folder / "model" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:4000])
    before = tree(folder)
    for words in (["generate", "a", "--model", "model"], ["info", "model"]):
        result = run(*words)
        assert result.exit_code == 2, words
        assert "model" in result.stderr
    assert tree(folder) == before
