import pytest
from toy_chest import write_cases, write_generated


@pytest.fixture(scope="session")
def toy_folders(tmp_path_factory):
    """Three real chests, their masks, and generated volumes for them; read only."""
    root = tmp_path_factory.mktemp("toy")
    write_cases(root / "real", range(3), root / "masks")
    write_generated(root / "made", range(3), inputs=["mask", "text"], notes=["a note"])
    return root
