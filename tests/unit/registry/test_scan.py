"""The one pass over package metadata."""

from __future__ import annotations

import importlib.metadata
import sys

import importlib_metadata
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transom.registry.scan import Entry, Problem, index_of, installed_version, requirements_of, scan
from transom.slots import SLOTS


def _scan(site, *more):
    return scan([str(site.root), *map(str, more)])


def test_scan_reads_every_group_of_transom_and_no_other(site):
    info = site.install(
        "Acme-Norm",
        "[console_scripts]\nacme = acme_norm:main\n"
        "[transom.norm]\n# a comment\nfast = acme_norm.parts:Fast\n"
        "[transom.hooks]\nlora = acme_norm.hooks:Lora.inner [extra]\n"
        "[transom.slots]\nrouter=acme_norm.slots : ROUTER\n",
        version="2.1",
    )
    index = _scan(site)
    assert index.problems == ()
    assert index.is_complete
    assert index.distributions == ("Acme-Norm",)
    assert index.entries == (
        Entry("transom.hooks", "lora", "acme_norm.hooks:Lora.inner [extra]", "Acme-Norm", "2.1", str(info)),
        Entry("transom.norm", "fast", "acme_norm.parts:Fast", "Acme-Norm", "2.1", str(info)),
        Entry("transom.slots", "router", "acme_norm.slots : ROUTER", "Acme-Norm", "2.1", str(info)),
    )
    assert [entry.name for entry in index.group("transom.norm")] == ["fast"]
    assert [entry.slot for entry in index.entries] == ["hooks", "norm", "slots"]


def test_scan_imports_nothing(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, code="raise SystemExit")
    before = set(sys.modules)
    _scan(site)
    assert not {name for name in set(sys.modules) - before if name.startswith("acme")}


def test_scan_agrees_with_the_standard_library():
    groups = [slot.group for slot in SLOTS.values()]
    expected = {(p.group, p.name, p.value) for g in groups for p in importlib.metadata.entry_points(group=g)}
    assert {(e.group, e.name, e.value) for e in scan().entries if e.group in groups} == expected
    assert ("transom.norm", "torch_norm", "transom.transformer.norm:TorchNorm") in expected


def test_scan_lets_the_first_copy_on_the_path_win(site, tmp_path):
    other = type(site)(tmp_path / "other")
    first = site.install("acme-norm", {"norm": {"new": "Fast"}}, version="1.0")
    second = other.install("acme-norm", {"norm": {"old": "Fast"}}, version="9.0")
    index = _scan(site, other.root)
    assert [(e.name, e.version) for e in index.entries] == [("new", "1.0")]
    expected = Problem("shadowed", "acme-norm", str(second), f"is hidden by another copy, {first}")
    assert index.problems == (expected,)
    assert str(expected) == f"acme-norm: is hidden by another copy, {first} ({second})"


def test_scan_lets_a_first_copy_without_entry_points_win_too(site, tmp_path):
    other = type(site)(tmp_path / "other")
    site.install("acme-norm")
    other.install("acme_norm", {"norm": {"old": "Fast"}})
    index = _scan(site, other.root)
    assert index.entries == ()
    assert [problem.kind for problem in index.problems] == ["shadowed"]


def test_scan_counts_a_directory_twice_on_the_path_once(site, tmp_path):
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    (tmp_path / "link").symlink_to(site.root)
    index = _scan(site, site.root, tmp_path / "link")
    assert len(index.entries) == 1
    assert index.problems == ()


def test_scan_takes_dist_info_before_a_stale_egg_info_beside_it(site):
    stale = site.install("acme-norm", {"norm": {"old": "Fast"}}, version="9.0", kind="egg-info")
    site.install("acme-norm", {"norm": {"new": "Fast"}}, version="1.0")
    index = _scan(site)
    assert [entry.name for entry in index.entries] == ["new"]
    assert [(p.kind, p.where) for p in index.problems] == [("shadowed", str(stale))]


def test_scan_takes_the_newest_of_two_versions_in_one_directory(site):
    for version in ("1.9", "1.10", "1.2"):
        site.install("acme-norm", {"norm": {"v" + version: "Fast"}}, version=version)
    index = _scan(site)
    assert [entry.version for entry in index.entries] == ["1.10"]
    assert [problem.kind for problem in index.problems] == ["shadowed", "shadowed"]


def test_scan_reads_egg_info_where_there_is_nothing_else(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, kind="egg-info", version="3.0")
    assert [(e.distribution, e.version) for e in _scan(site).entries] == [("acme-norm", "3.0")]


def test_scan_passes_over_a_directory_that_lost_its_metadata(site, tmp_path):
    left = site.install("acme-norm", {"norm": {"old": "Fast"}})
    (left / "METADATA").unlink()
    other = type(site)(tmp_path / "other")
    other.install("acme-norm", {"norm": {"new": "Fast"}})
    index = _scan(site, other.root)
    assert [entry.name for entry in index.entries] == ["new"]
    stale = "is stale: what is left of an interrupted install or uninstall"
    assert index.problems == (Problem("metadata", "acme-norm", str(left), stale),)


def test_scan_passes_over_what_an_interrupted_uninstall_renamed(site):
    info = site.install("acme-norm", {"norm": {"old": "Fast"}})
    info.rename(info.with_name("~cme_norm-1.0.dist-info"))
    index = _scan(site)
    assert index.entries == ()
    assert [(p.kind, p.distribution) for p in index.problems] == [("metadata", "~cme-norm")]


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        (b"Name: acme-norm\nVersion: 1.0\nSummary: \xff\n", "cannot be read: UnicodeDecodeError"),
        ("", "says name '' and version ''; the directory's name is taken instead"),
        ("Name: acme-norm\n\nVersion: 1.0 is body", "says name 'acme-norm' and version ''; "),
        ("Name: transom\nVersion: 1.0\n", "says name 'transom' and version '1.0'; "),
    ],
    ids=["not utf-8", "empty", "no version", "of another"],
)
def test_scan_takes_the_directory_s_word_where_metadata_are_wrong(site, metadata, what):
    info = site.install("acme-norm", {"norm": {"fast": "Fast"}}, version="1.5", metadata=metadata)
    index = _scan(site)
    assert [(e.distribution, e.version) for e in index.entries] == [("acme-norm", "1.5")]
    (problem,) = index.problems
    assert (problem.kind, problem.distribution, problem.where) == ("metadata", "acme-norm", str(info))
    assert what in problem.what


def test_scan_calls_a_version_unknown_that_is_nowhere(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, version="nonsense", metadata="Name: acme-norm\n")
    assert [entry.version for entry in _scan(site).entries] == ["unknown"]


def test_scan_takes_the_first_name_and_version_of_a_header(site):
    text = (
        "Metadata-Version: 2.1\r\nname : no\r\nName:  acme-norm \r\nVersion: 1.0\r\nVersion: 2.0\r\n\r\nName: body\r\n"
    )
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, metadata=text)
    assert [(e.distribution, e.version) for e in _scan(site).entries] == [("acme-norm", "1.0")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fast", "is not of the form name = module:attribute"),
        ("fast =", "is not of the form name = module:attribute"),
        ("fa st = acme:Fast", "has a name that cannot be asked for"),
        ("auto = acme:Fast", "has a name that cannot be asked for"),
        (" = acme:Fast", "has a name that cannot be asked for"),
        ("fast = acme", "does not refer to an object as module:attribute"),
        ("fast = acme-norm:Fast", "does not refer to an object as module:attribute"),
        ("fast = acme:Fast()", "does not refer to an object as module:attribute"),
        ("good = acme:Other", "repeats a name of its group"),
    ],
)
def test_scan_notes_a_malformed_entry_and_keeps_the_others(site, line, complaint):
    info = site.install("acme-norm", f"[transom.norm]\ngood = acme:Good\n{line}\nalso = acme:Also\n")
    index = _scan(site)
    assert {(e.name, e.value) for e in index.entries} == {("good", "acme:Good"), ("also", "acme:Also")}
    (problem,) = index.problems
    assert (problem.kind, problem.where) == ("entry point", f"{info}/entry_points.txt, line 3")
    assert problem.what == f"{complaint}: [transom.norm] {line.strip()}"


def test_scan_notes_a_group_that_no_slot_can_have(site):
    site.install("acme-norm", "[transom.]\nfast = acme:Fast\n[transom.a b]\nfast = acme:Fast\n")
    index = _scan(site)
    assert index.entries == ()
    assert [p.what.partition(":")[0] for p in index.problems] == ["is in a group that no slot can have"] * 2


@pytest.mark.parametrize("text", ["not an ini file", "[console_scripts]\n= = =\n[[[", b"\xff\xfe\x00", "[x]\ntransom"])
def test_scan_does_not_mind_what_unrelated_distributions_write(site, text):
    site.install("unrelated", text)
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    index = _scan(site)
    assert [entry.name for entry in index.entries] == ["fast"]
    assert index.problems == ()


def test_scan_notes_entry_points_that_are_not_utf8(site):
    info = site.install("acme-norm", b"[transom.norm]\nfast = acme:\xff\n")
    index = _scan(site)
    assert index.entries == ()
    (problem,) = index.problems
    assert (problem.kind, problem.where) == ("entry point", f"{info}/entry_points.txt")
    assert problem.what.startswith("is not UTF-8: ")


def test_scan_reads_entry_points_behind_a_byte_order_mark(site):
    site.install("acme-norm", b"\xef\xbb\xbf[transom.norm]\nfast = acme:Fast\n")
    assert [entry.name for entry in _scan(site).entries] == ["fast"]


def test_scan_notes_a_file_that_may_not_be_opened(site, monkeypatch):
    info = site.install("acme-norm", {"norm": {"fast": "Fast"}})
    (info / "entry_points.txt").unlink()
    (info / "entry_points.txt").symlink_to("entry_points.txt")
    index = _scan(site)
    (problem,) = index.problems
    assert (problem.kind, problem.where) == ("metadata", str(info))
    assert problem.what.startswith("cannot be read: OSError: ")


class _InMemory(importlib_metadata.Distribution):
    """A distribution that lies in no file."""

    def __init__(self, files):
        self.files_in_memory = files

    def read_text(self, filename):
        return self.files_in_memory.get(filename)

    def locate_file(self, path):
        raise AssertionError("a scan locates nothing")


class _Finder:
    def __init__(self, *distributions):
        self.distributions = distributions

    def find_spec(self, *args, **kwargs):
        return None

    def find_distributions(self, context=None):
        for distribution in self.distributions:
            if distribution is None:
                raise RuntimeError("finder of another package")
            yield distribution


def test_scan_reads_distributions_that_lie_in_no_file(site, monkeypatch):
    memory = {"METADATA": "Name: acme-mem\nVersion: 4\n", "entry_points.txt": "[transom.norm]\nmem = acme_mem:M\n"}
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Finder(_InMemory(memory), _InMemory({}))])
    assert ("mem", "acme-mem", "4") in {(e.name, e.distribution, e.version) for e in scan().entries}


def test_scan_goes_on_when_a_finder_of_another_package_fails(site, monkeypatch):
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    monkeypatch.setattr(sys, "meta_path", [_Finder(None), *sys.meta_path])
    index = scan()
    assert {"fast", "torch_norm"} <= {entry.name for entry in index.entries}
    what = "a finder of distributions failed: RuntimeError: finder of another package"
    assert Problem("metadata", "?", "sys.meta_path", what) in index.problems


@given(st.binary(max_size=80) | st.text(alphabet="[]transom.norm=:# \n\tab", max_size=80).map(str.encode))
def test_scan_survives_any_entry_points(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("site")
    (root / "acme-1.0.dist-info").mkdir()
    (root / "acme-1.0.dist-info" / "METADATA").write_bytes(content)
    (root / "acme-1.0.dist-info" / "entry_points.txt").write_bytes(b"[transom.norm]\na = b:c\n" + content)
    index = scan([str(root)])
    assert index.problems or index.entries


def test_index_of_looks_at_the_named_distributions_alone(site, monkeypatch):
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    site.install("acme-other", {"norm": {"other": "Fast"}})
    index = index_of(["Acme.Norm", "no-such"], [str(site.root)])
    assert [entry.name for entry in index.entries] == ["fast"]
    assert index.problems == (Problem("metadata", "no-such", "no-such", "is not installed"),)
    assert not index.is_complete


def test_index_of_agrees_with_a_scan(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    expected = tuple(entry for entry in scan().entries if entry.distribution in ("transom", "acme-norm"))
    assert index_of(["acme-norm", "transom"]).entries == expected


def test_installed_version_reads_metadata(site):
    site.install("acme-norm", version="7.8")
    broken = site.install("acme-broken", metadata=b"Name: \xff")
    assert installed_version("Acme_Norm") == "7.8"
    assert installed_version("acme-broken") is None
    assert broken.is_dir()
    assert installed_version("no-such-distribution") is None


def test_requirements_of_reads_metadata(site):
    site.install(
        "acme-norm", metadata="Name: acme-norm\nVersion: 1\nRequires-Dist: a>=1\nRequires-Dist: b; extra == 'x'\n"
    )
    assert requirements_of("acme-norm") == ("a>=1", "b; extra == 'x'")
    assert requirements_of("no-such-distribution") == ()
