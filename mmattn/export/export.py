"""`mmattn export`: a run as one file, compared with its networks before it is written."""

import json
import re
from pathlib import Path
from typing import Literal

import mmattn
from mmattn.console import say
from mmattn.errors import UserError
from mmattn.export.check import draw_clips, largest_difference
from mmattn.files import check_place, explain_full_disk, read_json, write_bytes, write_json
from mmattn.run.card import UNKNOWN, USE, card
from mmattn.run.folder import check_complete
from mmattn.run.run import Run, load_run
from mmattn.run.shared import CARD, find_shared
from mmattn.train.devices import start_devices

FORMATS = (".onnx", ".stablehlo")
USE_HERE = "Exported by `mmattn export`; `before` in the metadata says how to prepare clips.\n"
TOLERANCE = 1e-4


def export_run(
    folder: Path, to: Path, checkpoint: Literal["best", "final"] = "best", calibrated: bool = True
) -> None:
    """Write a complete run, or a model file, for other programs.

    Args:
        folder: see `load_run`.
        to: FILE.onnx, or FILE.stablehlo with its metadata in FILE.json.
        checkpoint: of each network.
        calibrated: see `load_run`.

    Raises:
        UserError: no complete run, another suffix, a fusion that the format lacks, a missing
            library, a file that differs from the networks, or an existing FILE.json that is not of
            an export.
    """
    if to.suffix not in FORMATS:
        raise UserError(f"--to {to}: expected a name that ends in {' or '.join(FORMATS)}")
    check_place("to", to)
    if to.suffix == ".stablehlo" and (beside := to.with_suffix(".json")).exists():
        there = read_json(beside)
        if not (isinstance(there, dict) and {"before", "mmattn"} <= there.keys()):
            raise UserError(f"--to {to} would overwrite {beside}, which is not from an export")
    shared = find_shared(folder)
    if not shared:
        check_complete(folder)
    start_devices(1, batch=1)
    run = load_run(folder, checkpoint, calibrated=calibrated)
    write_export(to, run, _card_of(shared) if shared else card(run))


def write_export(to: Path, run: Run, text: str) -> None:
    """Write a run, with `text` as its model card; see `export_run`."""
    networks = run.restored()
    temperatures = [one.about.get("temperature") if run.is_calibrated else None for one in networks]
    modalities, data = run.config.model.modalities, run.config.data
    corpus = draw_clips(modalities, networks[0].normaliser, data, run.class_names)
    about = _metadata(run, text)
    try:
        if to.suffix == ".onnx":
            from mmattn.export.onnx_file import call_onnx as call
            from mmattn.export.onnx_file import onnx_model

            content = onnx_model(networks, temperatures, corpus, about).SerializeToString()
        else:
            from mmattn.export.stablehlo import call_stablehlo as call
            from mmattn.export.stablehlo import stablehlo

            content = stablehlo(networks, temperatures, corpus)
        worst = largest_difference(call(content), networks, temperatures, corpus)
    except ImportError as error:  # not explain_missing: JAX raises its own messages
        raise UserError(
            f"--to {to} needs more libraries: pip install 'mmattn[export]' ({error})"
        ) from error
    if not worst <= TOLERANCE:
        raise UserError(
            f"{to} was not written: it differs from the networks by {worst:.1e} on random clips, "
            f"expected at most {TOLERANCE:.0e}"
        )
    with explain_full_disk(str(to)):
        write_bytes(to, content)
        if to.suffix == ".stablehlo":
            write_json(to.with_suffix(".json"), about)
    say(
        f"{to}: {to.stat().st_size / 1e6:.2f} MB, differs from the networks by at most {worst:.0e}"
        f" on {len(corpus)} random clips"
    )


def _card_of(shared: Path) -> str:
    """The card beside a model file."""
    path = shared.with_name(CARD)
    return path.read_text(encoding="utf-8") if path.is_file() else UNKNOWN


def _metadata(run: Run, text: str) -> dict[str, str]:
    """The file's metadata, as text or JSON."""
    licence = re.search(r"^Licence of the weights: (.+)\.$", text, re.MULTILINE)
    modalities = run.config.model.modalities
    return {
        "name": run.config.name,
        "classes": json.dumps(run.class_names, ensure_ascii=False),
        "modalities": json.dumps(modalities),
        "extractor": json.dumps({name: run.extractor.get(name) for name in modalities}),
        "before": " ".join(_before(run)),
        "networks": str(len(run.networks)),
        "calibrated": json.dumps(run.is_calibrated),
        "licence": licence[1] if licence else UNKNOWN,
        "card": text.replace(USE, USE_HERE),
        "mmattn": mmattn.__version__,
    }


def _before(run: Run) -> list[str]:
    """The steps that a program must do itself before it calls the file, in order."""
    data, modalities = run.config.data, run.config.model.modalities
    steps = ["Extract the features as in `extractor`; do not normalise them."]
    if data.overlap and len(modalities) > 1:
        steps.append("Crop the modalities of a clip to the time that they have in common.")
    if tiled := [name for name in modalities if name in data.tile]:
        steps.append(f"Replace every frame of {' and '.join(tiled)} by the mean over the clip.")
    return [*steps, "The length of a modality that a clip lacks is 0."]
