"""The nodes of a mount, and their places."""

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.mount.tree import PROOF, Node, Tree
from appliance.wire import fuse


def packed(kind: int = stat.S_IFREG, inode: int = 0, links: int = 1, size: int = 0) -> bytes:
    when = (1, 0)
    return fuse.Attributes(
        inode, size, 0, when, when, when, kind | 0o644, links, 0, 0
    ).encode()  # fmt: skip


DIRECTORY = packed(stat.S_IFDIR)


@pytest.fixture
def tree() -> Tree:
    tree = Tree(b"/srv")
    tree.root.know(DIRECTORY, 10.0, 0.0, 0.0)
    return tree


def made(tree: Tree, parent: Node, name: bytes, attributes: bytes = packed()) -> Node:
    node = tree.child(parent, name, attributes, 10.0, 0.0, 0.0)
    node.lookups += 1
    return node


def test_paths_follow_renames(tree: Tree) -> None:
    folder = made(tree, tree.root, b"folder", DIRECTORY)
    file = made(tree, folder, b"file")
    assert tree.path(file) == b"/srv/folder/file"
    tree.move(tree.root, b"folder", tree.root, b"other")
    assert tree.path(file) == b"/srv/other/file"
    tree.move(folder, b"file", tree.root, b"top")
    assert tree.path(file) == b"/srv/top"
    assert tree.path_of(tree.root, b"new") == b"/srv/new"
    top = Tree(b"/")
    assert top.path_of(top.root, b"new") == b"/new"


def test_a_file_that_lost_its_name_is_stale(tree: Tree) -> None:
    file = made(tree, tree.root, b"file")
    other = made(tree, tree.root, b"other")
    tree.move(tree.root, b"other", tree.root, b"file")
    with pytest.raises(OSError) as caught:
        tree.path(file)
    assert caught.value.errno == errno.ESTALE
    assert tree.path(other) == b"/srv/file"


def test_another_inode_or_type_is_another_node(tree: Tree) -> None:
    first = made(tree, tree.root, b"name", packed(inode=5))
    assert made(tree, tree.root, b"name", packed(inode=5, size=9)) is first
    second = made(tree, tree.root, b"name", packed(inode=6))
    assert second is not first
    assert made(tree, tree.root, b"name", packed(stat.S_IFDIR, 6)) is not second


def test_hard_links_are_one_node_with_several_names(tree: Tree) -> None:
    one = made(tree, tree.root, b"one", packed(inode=5, links=2))
    assert made(tree, tree.root, b"two", packed(inode=5, links=2)) is one
    assert {name for _, name in tree.names(one)} == {b"one", b"two"}
    tree.remove(tree.root, b"one")
    assert tree.path(one) == b"/srv/two"
    tree.move(tree.root, b"two", tree.root, b"three")
    assert tree.path(one) == b"/srv/three"


def test_a_rename_between_two_names_of_a_file_does_nothing(tree: Tree) -> None:
    node = made(tree, tree.root, b"one", packed(inode=5, links=2))
    made(tree, tree.root, b"two", packed(inode=5, links=2))
    tree.move(tree.root, b"one", tree.root, b"two")
    assert {name for _, name in tree.names(node)} == {b"one", b"two"}


def test_a_file_without_an_inode_shows_its_number(tree: Tree) -> None:
    node = made(tree, tree.root, b"file")
    assert fuse.inode_in(node.packed) == node.number


def test_what_is_forgotten_goes_and_what_is_needed_stays(tree: Tree) -> None:
    folder = made(tree, tree.root, b"folder", DIRECTORY)
    file = made(tree, folder, b"file")
    tree.forget(folder.number, 1)
    assert tree[folder.number] is folder  # it has a child
    tree.forget(file.number, 1)
    assert len(tree) == 1
    assert not tree.root.children
    tree.forget(12345, 1)  # unknown numbers do no harm


def test_times_prove_only_what_was_fetched_later(tree: Tree) -> None:
    node = made(tree, tree.root, b"file")
    node.know(packed(size=1), 200.0, 100.0, 100.0)
    assert not node.proves(100.0 + PROOF / 2)
    assert node.proves(100.0 + PROOF)
    node.know(packed(size=1), 300.0, 150.0, 150.0)  # the same as before
    assert node.proves(100.0 + PROOF)
    node.know(packed(size=2), 300.0, 150.0, 150.0)
    assert not node.proves(150.0)


def test_what_was_asked_before_a_change_of_ours_is_not_believed(tree: Tree) -> None:
    node = made(tree, tree.root, b"file", packed(size=1))
    node.changed_at, node.expires = 100.0, 0.0
    node.grow(10)
    tree.learn(node, packed(size=1), 200.0, 99.0, 101.0)
    tree.child(tree.root, b"file", packed(size=1), 200.0, 99.0, 101.0)
    assert node.size == 10
    assert node.expires == 0.0
    tree.learn(node, packed(size=12), 200.0, 100.0, 101.0)
    assert node.size == 12
    # a listing from before the change holds longer, and has what was learned since
    tree.child(tree.root, b"file", node.packed, 300.0, 99.0, 102.0)
    assert node.expires == 300.0


def test_what_was_asked_before_we_made_a_file_is_of_another_one(tree: Tree) -> None:
    """As of an editor's new file, whose name the one before had a moment ago."""
    node = made(tree, tree.root, b"file")
    node.changed_at = 100.0
    for links in (1, 2):
        before = packed(inode=7, links=links)
        assert tree.child(tree.root, b"file", before, 200.0, 99.0, 101.0) is node
        tree.learn(node, before, 200.0, 99.0, 101.0)
    assert node.inode == 0
    tree.learn(node, packed(inode=8), 200.0, 101.0, 102.0)
    assert tree.child(tree.root, b"file", packed(inode=7), 200.0, 99.0, 103.0) is node
    assert node.inode == 8
    other = tree.child(tree.root, b"file", packed(inode=9), 200.0, 104.0, 105.0)
    assert other is not node and other.inode == 9


def test_the_number_that_the_kernel_is_told_is_no_inode(tree: Tree) -> None:
    """As of a file that was made behind, whose inode is not known before the server has made it."""
    node = made(tree, tree.root, b"file")
    node.keeps_number = True
    listed = node.for_listing
    assert tree.child(tree.root, b"file", listed, 200.0, 1.0, 1.0) is node
    assert node.inode == 0
    assert fuse.inode_in(node.packed) == node.number
    assert tree.is_same(node, packed(inode=7))
    tree.learn(node, packed(inode=7), 200.0, 2.0, 2.0)
    assert fuse.inode_in(node.packed) == node.number
    assert fuse.inode_in(node.for_listing) == 7


def test_files_that_nobody_uses_are_found_in_turn(tree: Tree) -> None:
    for number in range(10):
        made(tree, tree.root, b"%d" % number)
    first = tree.unused(3)
    second = tree.unused(3)
    assert len({name for _, name in first + second}) == len(first) + len(second) >= 6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), max_size=30))
def test_every_name_leads_to_its_node_whatever_is_done(
    steps: list[tuple[int, int, int]],
) -> None:
    tree = Tree(b"/srv")
    tree.root.know(DIRECTORY, 10.0, 0.0, 0.0)
    names = [b"a", b"b", b"c", b"d"]
    nodes: list[Node] = []
    for one, other, what in steps:
        if what == 0:
            nodes.append(made(tree, tree.root, names[one]))
        elif what == 1:
            nodes.append(made(tree, tree.root, names[one], packed(inode=7 + other, links=2)))
        elif what == 2:
            tree.move(tree.root, names[one], tree.root, names[other])
        elif what == 3:
            tree.remove(tree.root, names[one])
        elif nodes:
            node = nodes.pop()
            tree.forget(node.number, 1)
        for name, node in tree.root.children.items():
            assert (tree.root, name) in list(tree.names(node))
        for node in nodes:
            for parent, name in tree.names(node):
                assert parent.children[name] is node
