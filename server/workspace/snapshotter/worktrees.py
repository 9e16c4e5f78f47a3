"""Worktrees of users' repositories: added without a checkout, so that no filter or hook runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .git import Confinement, Git, GitError, files_of
from .objects import UNSAVED
from .restore import Restoration

OWN_BRANCH = "clawdforge/{}"
MAX_CHECKED_LINKS = 1000


class RepositoryError(Exception):
    """A repository or a branch that cannot be used.

    Attributes:
        code: the error code that the client gets.
    """

    def __init__(self, message: str, code: str = "bad_request") -> None:
        super().__init__(message)
        self.code = code


class Repository:
    """A git repository in one of the workspace roots.

    Args:
        path: the repository's folder, resolved.
        roots: the workspace roots, resolved. Everything that the repository refers to must be in
            them: an agent may have written its files.
        confinement: restricts git to the workspace roots, as an agent may change the repository
            after the check; None if this machine has no Landlock.
    """

    def __init__(
        self, program: str, path: str, roots: list[str], confinement: Confinement | None = None
    ) -> None:
        self._program = program
        self._confinement = confinement
        self._path = path
        self._roots = [Path(root) for root in roots]
        git_path = Path(path) / ".git"
        in_folder = self._git_of(git_path if git_path.exists() else Path(path))
        try:
            common = in_folder.output("rev-parse", "--path-format=absolute", "--git-common-dir")
        except GitError:
            raise RepositoryError("workspace.git.repository: not a git repository") from None
        self.folder = Path(os.fsdecode(common).rstrip("\n")).resolve()
        self._check_locations()
        self.git = self._git_of(self.folder)

    def _git_of(self, folder: Path) -> Git:
        return Git(self._program, folder, confinement=self._confinement)

    def _check_locations(self) -> None:
        used = [self.folder, *(self.folder / name for name in ("objects", "refs", "HEAD"))]
        used += [self.folder / name for name in ("packed-refs", "worktrees", "config")]
        used += self._links()
        alternates = self.folder / "objects" / "info" / "alternates"
        if alternates.is_file():
            lines = alternates.read_text("utf-8", "surrogateescape").splitlines()
            used += [alternates, *(self.folder / "objects" / line for line in lines if line)]
        for path_used in used:
            resolved = path_used.resolve()
            if not any(resolved.is_relative_to(root) for root in self._roots):
                raise RepositoryError(
                    "workspace.git.repository: it refers to files outside the workspace roots"
                )

    def _links(self) -> list[Path]:
        """The links in the folders in which git writes."""
        checked = [self.folder / name for name in ("logs", "objects/info", "objects/pack")]
        for name in ("refs", "logs", "worktrees"):
            for folder, folders, files in os.walk(self.folder / name):
                paths = [Path(folder, name) for name in (*folders, *files)]
                checked += [path for path in paths if path.is_symlink()]
                if len(checked) > MAX_CHECKED_LINKS:
                    raise RepositoryError("workspace.git.repository: it has too many links")
        return checked

    def add_worktree(self, folder: int, path: str, name: str, branch: str | None) -> list[str]:
        """Add a worktree at an empty folder, and write the branch's files to it.

        Args:
            folder: the descriptor of the folder.
            path: its path; the last part becomes the name of the worktree.
            name: names the branch if *branch* is None.
            branch: created at the repository's HEAD if it does not exist.

        Returns:
            The files that could not be written.

        Raises:
            RepositoryError: the repository has no commits, or the branch cannot be used.
            GitError: git fails.
        """
        chosen = branch or OWN_BRANCH.format(name)
        if not self._succeeds("check-ref-format", "--branch", chosen) or chosen.startswith("-"):
            raise RepositoryError("workspace.git.branch: not the name of a branch")
        if not self._succeeds("rev-parse", "--verify", "-q", "HEAD^{commit}"):
            raise RepositoryError("workspace.git.repository: it has no commits")
        exists = self._succeeds("rev-parse", "--verify", "-q", f"refs/heads/{chosen}")
        target = [path, chosen] if exists else ["-b", chosen, path, "HEAD"]
        if not self._succeeds("worktree", "add", "--no-checkout", *target):
            raise RepositoryError(
                f"workspace.git.branch: {chosen} cannot be used; another worktree may have it",
                "conflict",
            )
        own = self._git_of(self.folder / "worktrees" / Path(path).name)
        tree = own.output("rev-parse", "HEAD^{tree}").decode().strip()
        own.output("read-tree", tree)
        files = files_of(own, bytes.fromhex(tree))
        kept = {path: file for path, file in files.items() if file.mode != UNSAVED}  # no submodules
        restoration = Restoration(folder, own, {}, kept)
        restoration.run()
        return restoration.failed

    def remove_worktree(self, path: str, name: str) -> None:
        """Remove what the repository keeps of a worktree, and its branch if that is merged."""
        about = self.folder / "worktrees" / Path(path).name
        link = about / "gitdir"
        if link.is_file() and link.read_text("utf-8", "replace").strip() == f"{path}/.git":
            shutil.rmtree(about)
        self._succeeds("branch", "-d", "-q", OWN_BRANCH.format(name))

    def _succeeds(self, *arguments: str) -> bool:
        try:
            self.git.output(*arguments)
        except GitError:
            return False
        return True
