//! Patches as `git send-email` and b4 take them: a directory with a cover letter and numbered patches.
//!
//! Author and sign-off are those of the person who exports, from git's configuration. The recipients are those that the
//! tree's own `scripts/get_maintainer.pl` names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use support::{cache::Cache, progress::Progress, run};

use crate::{
    check::{load, work_dir},
    error::{Error, Result},
    git::{Git, option},
    released::{Loaded, Overlay, RELEASED, Release, WorkTree, changed_files},
    stack::{COVER_FILE, OVERLAY_FILE, Stack},
};

/// An export to be made.
pub struct Export<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The series.
    pub series: &'a str,
    /// The released kernel that the patches apply to.
    pub release: &'a Release,
    /// The group, or `overlay`.
    pub group: &'a str,
    /// The overlay.
    pub overlay: Option<&'a Overlay<'a>>,
    /// Who exports.
    pub identity: &'a Identity,
    /// The commit of the maintainers' repository that the release is, if it is known.
    pub base_commit: Option<&'a str>,
    /// Where git trees are kept.
    pub cache: &'a Cache,
    /// The directory to make.
    pub output: &'a Path,
    /// The listener to what is being done.
    pub progress: &'a dyn Progress,
}

/// A person, from git's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `user.name`.
    pub name: String,
    /// `user.email`.
    pub email: String,
}

impl Identity {
    /// The identity that git has for a directory.
    pub fn of(dir: &Path) -> Result<Self> {
        let get = |key: &str| -> Result<Option<String>> {
            let mut git = std::process::Command::new("git");
            let output = run::output(git.current_dir(dir).args(["config", "--get", key]))?;
            let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Ok((output.status.success() && !value.is_empty()).then_some(value))
        };
        match (get("user.name")?, get("user.email")?) {
            (Some(name), Some(email)) => Ok(Self { name, email }),
            (None, _) => Err(Error::NoIdentity { missing: "user.name" }),
            (_, None) => Err(Error::NoIdentity { missing: "user.email" }),
        }
    }
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The directory.
    pub dir: PathBuf,
    /// The files, in order.
    pub files: Vec<String>,
    /// Maintainers.
    pub to: Vec<String>,
    /// Reviewers and lists.
    pub cc: Vec<String>,
    /// Whether the base commit is one that maintainers know.
    pub base_is_public: bool,
}

/// Exports a group, or the overlay.
pub fn export(job: &Export<'_>) -> Result<Exported> {
    let (before, patches) = parts(job)?;
    let (dir, _lock) = work_dir(job.cache, "export", job.series, job.release, job.progress)?;
    let overlay = job.overlay.filter(|_| job.group == "overlay");
    let changed = changed_files(before.iter().chain(&patches), overlay, job.release);
    let work = WorkTree::prepare(&dir, job.release, &changed)?;
    for patch in &before {
        apply(&work, patch, job)?;
    }
    work.git.run(["tag", "--force", "start"])?;
    let cover = if overlay.is_some() {
        None
    } else {
        Some(read_message(&job.stack.dir().join(job.group).join(COVER_FILE))?)
    };
    for patch in &patches {
        apply(&work, patch, job)?;
        sign(&work.git, job.identity, None)?;
    }
    if let Some(overlay) = overlay {
        let (subject, text) = read_message(&job.stack.dir().join(OVERLAY_FILE))?;
        (overlay.lay)(work.git.dir()).map_err(Error::Overlay)?;
        let files = overlay.files.iter().map(|file| file.display().to_string());
        work.git.run(["add", "--force", "--"].map(str::to_owned).into_iter().chain(files))?;
        work.git.run(["add", "--update"])?;
        work.git.run(["commit", "--quiet", "-m", &format!("{subject}\n\n{text}")])?;
        sign(&work.git, job.identity, None)?;
    }
    let (to, cc) = recipients(&work)?;
    let staging = tempfile::Builder::new()
        .prefix(".export-")
        .tempdir_in(parent(job.output)?)
        .map_err(|e| Error::io("create a directory beside", job.output, e))?;
    format(job, &work.git, cover.as_ref(), (&to, &cc), staging.path())?;
    let mut files: Vec<String> = fs::read_dir(staging.path())
        .map_err(|e| Error::io("read", staging.path(), e))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    files.sort();
    if job.output.exists() {
        return Err(Error::Exists { path: job.output.to_owned() });
    }
    fs::rename(staging.path(), job.output).map_err(|e| Error::io("create", job.output, e))?;
    let _ = staging.keep();
    if let Some(overlay) = overlay {
        work.reset()?;
        overlay.remove(&work)?;
    }
    Ok(Exported { dir: job.output.to_owned(), files, to, cc, base_is_public: job.base_commit.is_some() })
}

/// The patches below the exported ones, and those.
fn parts(job: &Export<'_>) -> Result<(Vec<Loaded>, Vec<Loaded>)> {
    let product = job.stack.product(job.series);
    if job.group == "overlay" {
        return Ok((load(job.stack, &product)?, Vec::new()));
    }
    let group = job.stack.groups().iter().find(|group| group.name == job.group).ok_or_else(|| {
        Error::NoSuchGroup {
            name: job.group.to_owned(),
            known: job
                .stack
                .groups()
                .iter()
                .map(|group| &*group.name)
                .chain(["overlay"])
                .collect::<Vec<_>>()
                .join(", "),
        }
    })?;
    let patches = load(job.stack, &job.stack.of(group, job.series))?;
    if patches.is_empty() {
        return Err(Error::NoSuchPatch { name: format!("{}/", job.group), series: job.series.to_owned() });
    }
    let before = if group.product {
        product.into_iter().take_while(|patch| patch.group != group.name).collect()
    } else {
        Vec::new()
    };
    Ok((load(job.stack, &before)?, patches))
}

fn apply(work: &WorkTree, patch: &Loaded, job: &Export<'_>) -> Result<()> {
    let patch = &Loaded { text: adopt(&patch.text, job.identity), ..patch.clone() };
    work.am(patch)?.map_err(|output| Error::DoesNotApply {
        patch: patch.name.clone(),
        version: job.release.version.clone(),
        output,
    })
}

/// A patch with the person as the maintainer of the entries that it adds to MAINTAINERS: in the stack they are orphans,
/// since it names no person.
fn adopt(text: &str, identity: &Identity) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut inside = false;
    let mut hunk = None;
    for line in text.lines() {
        if line.starts_with("diff --git ") {
            inside = line == "diff --git a/MAINTAINERS b/MAINTAINERS";
            hunk = None;
        } else if inside && line.starts_with("@@ -") {
            hunk = Some(lines.len());
        }
        match (line, hunk) {
            ("+S:\tOrphan", Some(header)) => {
                let entry = lines.iter().rposition(|line| !line.starts_with("+L:")).map_or(0, |at| at + 1);
                lines.insert(entry, format!("+M:\t{} <{}>", identity.name, identity.email));
                lines[header] = one_line_longer(&lines[header]);
                lines.push("+S:\tMaintained".to_owned());
            }
            (" S:\tOrphan", Some(_)) => lines.push(" S:\tMaintained".to_owned()),
            _ => lines.push(line.to_owned()),
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// A hunk's `@@ -a,b +c,d @@` line for a hunk that adds one line more.
fn one_line_longer(header: &str) -> String {
    let lengthen = |range: &str| {
        let (start, length) = range.split_once(',').unwrap_or((range, "1"));
        format!("{start},{}", length.parse().unwrap_or(0) + 1)
    };
    let words = header.split(' ').enumerate();
    let words = words.map(|(at, word)| if at == 2 { lengthen(word) } else { word.to_owned() });
    words.collect::<Vec<_>>().join(" ")
}

/// Makes the newest commit the person's own, with their sign-off.
fn sign(git: &Git, identity: &Identity, date: Option<&str>) -> Result<()> {
    let mut commit =
        git.command(["commit", "--quiet", "--amend", "--no-edit", "--signoff", "--reset-author"]);
    for role in ["AUTHOR", "COMMITTER"] {
        commit
            .env(format!("GIT_{role}_NAME"), &identity.name)
            .env(format!("GIT_{role}_EMAIL"), &identity.email);
        if let Some(date) = date {
            commit.env(format!("GIT_{role}_DATE"), date);
        }
    }
    run::stdout(&mut commit)?;
    Ok(())
}

/// Subject and text of a message file.
fn read_message(path: &Path) -> Result<(String, String)> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::NoMessage { path: path.to_owned(), source })?;
    let (subject, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    Ok((subject.trim().to_owned(), body.trim_end().to_owned()))
}

/// Maintainers, and reviewers and lists, of the commits since `start`.
fn recipients(work: &WorkTree) -> Result<(Vec<String>, Vec<String>)> {
    let files = work.git.run(["diff", "--name-only", "start", "HEAD"])?;
    let mut perl = run::command("perl");
    perl.current_dir(work.git.dir()).args([
        "scripts/get_maintainer.pl",
        "--no-git",
        "--no-git-fallback",
        "--no-tree",
        "--rolestats",
        "-f",
    ]);
    // A new file has only its directory's maintainers, which get_maintainer.pl finds for names that do not exist, too.
    let said = run::stdout(perl.args(files.lines()))?;
    let (mut to, mut cc) = (BTreeSet::new(), BTreeSet::new());
    for line in said.lines() {
        let (address, role) = address_and_role(line);
        let address = address.to_owned();
        if role.starts_with("maintainer") || role.starts_with("supporter") {
            to.insert(address);
        } else if !address.is_empty() {
            cc.insert(address);
        }
    }
    cc.retain(|address| !to.contains(address));
    Ok((to.into_iter().collect(), cc.into_iter().collect()))
}

/// The parts of a line of `get_maintainer.pl`: `Name <address> (maintainer:SUBSYSTEM (32-BIT))` or `address (open list:…)`. Both a
/// name and a subsystem may have parentheses.
fn address_and_role(line: &str) -> (&str, &str) {
    let line = line.trim();
    if let Some((named, role)) = line.split_once("> (") {
        return (&line[..=named.len()], role);
    }
    line.split_once(" (").unwrap_or((line, ""))
}

/// Writes the patches of `start..HEAD` to a directory.
fn format(
    job: &Export<'_>,
    git: &Git,
    cover: Option<&(String, String)>,
    (to, cc): (&[String], &[String]),
    dir: &Path,
) -> Result<()> {
    let mut format =
        git.command(["format-patch", "--quiet", "--numbered", "--find-renames", "--thread=shallow"]);
    for role in ["AUTHOR", "COMMITTER"] {
        format
            .env(format!("GIT_{role}_NAME"), &job.identity.name)
            .env(format!("GIT_{role}_EMAIL"), &job.identity.email);
    }
    format.arg(option("--output-directory", dir)).arg(format!("--base={RELEASED}"));
    format.args(to.iter().map(|address| format!("--to={address}")));
    format.args(cc.iter().map(|address| format!("--cc={address}")));
    if let Some((subject, text)) = cover {
        let description = format!("{subject}\n\n{text}");
        git.run(["config", "branch.stack.description", &description])?;
        format.args(["--cover-letter", "--cover-from-description=subject"]);
    }
    run::stdout(format.arg("start..stack"))?;
    if let Some(base) = job.base_commit {
        let own = git.run(["rev-parse", RELEASED])?;
        for entry in fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))? {
            let path = entry.map_err(|e| Error::io("read", dir, e))?.path();
            let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
            fs::write(&path, text.replace(&own, base)).map_err(|e| Error::io("write", &path, e))?;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> Result<&Path> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ENTRY: &str = "\
diff --git a/MAINTAINERS b/MAINTAINERS
--- a/MAINTAINERS
+++ b/MAINTAINERS
@@ -10,3 +10,7 @@ OPENAPI
 a
+OPENBSD VMM GUESTS
+L:\tlist@vger.kernel.org
+S:\tOrphan
+
 b
 c
";

    #[test]
    fn who_exports_maintains_what_a_patch_adds() {
        let identity = Identity { name: "A Person".to_owned(), email: "person@kernel.org".to_owned() };
        let adopted = adopt(ENTRY, &identity);
        let entry = "GUESTS\n+M:\tA Person <person@kernel.org>\n+L:\tlist@vger.kernel.org\n+S:\tMaintained\n";
        assert!(adopted.contains(entry) && adopted.contains("@@ -10,3 +10,8 @@ OPENAPI"), "{adopted}");
    }

    #[test]
    fn other_files_are_left_alone() {
        let identity = Identity { name: "A".to_owned(), email: "a@kernel.org".to_owned() };
        let other = ENTRY.replace("MAINTAINERS", "CREDITS");
        assert_eq!(adopt(&other, &identity), other);
    }

    #[rstest]
    #[case::a_subsystem_with_parentheses(
        "Thomas Gleixner <tglx@kernel.org> (maintainer:X86 ARCHITECTURE (32-BIT AND 64-BIT))",
        "Thomas Gleixner <tglx@kernel.org>",
        "maintainer:X86"
    )]
    #[case::a_name_with_parentheses(
        "\"A (B)\" <a@kernel.org> (reviewer:C)",
        "\"A (B)\" <a@kernel.org>",
        "reviewer:C"
    )]
    #[case::a_list(
        "kvm@vger.kernel.org (open list:KVM PARAVIRT (KVM/paravirt))",
        "kvm@vger.kernel.org",
        "open list:KVM"
    )]
    #[case::no_role("a@kernel.org", "a@kernel.org", "")]
    fn a_recipient_is_told_from_its_role(#[case] line: &str, #[case] address: &str, #[case] role: &str) {
        let (found, found_role) = address_and_role(line);
        assert_eq!(found, address);
        assert!(found_role.starts_with(role), "{found_role}");
    }
}
