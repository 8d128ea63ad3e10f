//! One patch file: subject, message, notes and the changes of its diff.
//!
//! A patch file is what `git format-patch` writes without its envelope: a `Subject:` header, an empty line, the message,
//! `---`, notes and the diffstat, an empty line, the diff. The line `From <commit> Mon Sep 17 00:00:00 2001` may precede
//! it. It names no author: the person who exports it becomes its author and signs it off.

use std::path::Path;

use crate::error::{Error, Problem, Result};

/// The longest subject, in characters, that `Documentation/process/submitting-patches.rst` allows.
const SUBJECT_MAX: usize = 75;

/// Trailers that name a person whose consent is public: they may bear an address.
const PUBLIC_TRAILERS: &[&str] = &[
    "Acked-by",
    "Cc",
    "Closes",
    "Fixes",
    "Link",
    "Message-ID",
    "Reported-by",
    "Reviewed-by",
    "Suggested-by",
    "Tested-by",
];

/// Top-level domains that are reserved (RFC 2606).
const RESERVED_DOMAINS: &[&str] =
    &[".invalid", ".example", ".test", "example.com", "example.org", "example.net"];

/// A parsed patch file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchFile {
    /// The subject, without `[PATCH]`.
    pub subject: String,
    /// The message below the subject, trailers included.
    pub message: String,
    /// The lines between `---` and the diffstat.
    pub notes: String,
    /// The changed files, in the order of the diff.
    pub changes: Vec<Change>,
    /// The diff, from its first `diff --git` line.
    pub diff: String,
}

/// What a patch does to one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The file's path after the patch, or before it if the patch removes the file.
    pub path: String,
    /// The path before the patch; `None` for a new file.
    pub old_path: Option<String>,
    /// Whether the patch removes the file.
    pub removed: bool,
    /// The abbreviated blob identifiers before and after, as the `index` line has them.
    pub index: Option<(String, String)>,
    /// The hunks, in order.
    pub hunks: Vec<Hunk>,
}

/// One hunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hunk {
    /// Its `@@ … @@` line.
    pub header: String,
    /// Added lines, without their `+`.
    pub added: Vec<String>,
    /// Removed lines, without their `-`.
    pub removed: Vec<String>,
}

impl PatchFile {
    /// Reads a patch file. `name` is its name in problems.
    pub fn read(path: &Path, name: &str) -> Result<std::result::Result<Self, Vec<Problem>>> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Ok(Self::parse(&text, name))
    }

    /// Parses a patch file and checks its form; every broken rule is a problem.
    pub fn parse(text: &str, name: &str) -> std::result::Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut problem = |what: String, remedy: &str| problems.push(Problem::new(name, what, remedy));
        let (head, rest) = without_separator(text).split_once("\n\n").unwrap_or((text, ""));
        let subject = subject(head, &mut problem);
        let diff_start = find_line(rest, |line| line.starts_with("diff --git "));
        let (front, diff) = diff_start.map_or((rest, ""), |at| rest.split_at(at));
        let (message, below) = if let Some(at) = find_line(front, |line| line == "---") {
            (&front[..at], front[at..].trim_start_matches("---\n"))
        } else {
            problem("no --- line below the message".to_owned(), "end the message with a line `---`");
            (front, "")
        };
        if message.trim().is_empty() {
            problem("no message".to_owned(), "say the problem, the change, and how it was measured");
        }
        let changes = changes(diff);
        if changes.is_empty() {
            problem("no diff".to_owned(), "a patch changes at least one file");
        }
        for change in changes.iter().filter(|change| change.index.is_none() && !change.hunks.is_empty()) {
            problem(
                format!("no index line for {}", change.path),
                "write the patch with `git format-patch` or `vmmlinux series refresh`",
            );
        }
        let (notes, stat) = split_diffstat(below);
        match stat {
            None => problem(
                "no diffstat".to_owned(),
                "write the patch with `git format-patch` or `vmmlinux series refresh`",
            ),
            Some(stat) if stat != Counts::of(&changes) => problem(
                format!("the diffstat says {stat}, the diff has {}", Counts::of(&changes)),
                "write the patch with `git format-patch` or `vmmlinux series refresh`",
            ),
            Some(_) => {}
        }
        addresses(message, &changes, &mut problem);
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            subject,
            message: message.trim_end().to_owned(),
            notes: notes.trim_end().to_owned(),
            changes,
            diff: diff.to_owned(),
        })
    }

    /// The reason why the patch changes objects of kernels without our options: the `Objects-change:` line of its
    /// notes, with its continuation lines, which are indented.
    pub fn objects_change(&self) -> Option<String> {
        let mut lines = self.notes.lines().skip_while(|line| !line.starts_with("Objects-change:"));
        let mut reason = lines.next()?.trim_start_matches("Objects-change:").trim().to_owned();
        for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
            reason.push(' ');
            reason.push_str(line.trim());
        }
        (!reason.is_empty()).then_some(reason)
    }
}

/// A patch file without the line that separates messages in a mailbox.
fn without_separator(text: &str) -> &str {
    match text.split_once('\n') {
        Some((line, rest)) if line.starts_with("From ") && line.ends_with(" Mon Sep 17 00:00:00 2001") => {
            rest
        }
        _ => text,
    }
}

/// The subject of a header block that holds nothing else.
fn subject(head: &str, problem: &mut impl FnMut(String, &str)) -> String {
    let mut subject = None::<String>;
    for line in head.lines() {
        match (line.strip_prefix("Subject: "), &mut subject) {
            (Some(text), None) => subject = Some(text.to_owned()),
            (None, Some(subject)) if line.starts_with([' ', '\t']) => {
                subject.push(' ');
                subject.push_str(line.trim());
            }
            _ => problem(
                format!("unexpected header `{}`", line.chars().take(40).collect::<String>()),
                "a patch has one header, `Subject:`; author and date are set when the patch is exported",
            ),
        }
    }
    let Some(subject) = subject else {
        problem(
            "no Subject: header".to_owned(),
            "begin the file with `Subject: subsystem: Imperative subject`",
        );
        return String::new();
    };
    let subject = subject.strip_prefix("[PATCH] ").map_or(subject.clone(), ToOwned::to_owned);
    let length = subject.chars().count();
    if length > SUBJECT_MAX {
        problem(format!("the subject has {length} characters"), "a subject has at most 75 characters");
    }
    if !subject.contains(": ") {
        problem("the subject names no subsystem".to_owned(), "`subsystem: Imperative subject`");
    }
    subject
}

/// The offset of the first line that matches.
fn find_line(text: &str, matches: impl Fn(&str) -> bool) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if matches(line.trim_end_matches('\n')) {
            return Some(at);
        }
        at += line.len();
    }
    None
}

/// Files changed, lines added, lines removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    files: usize,
    added: usize,
    removed: usize,
}

impl Counts {
    fn of(changes: &[Change]) -> Self {
        let hunks = || changes.iter().flat_map(|change| &change.hunks);
        Self {
            files: changes.len(),
            added: hunks().map(|hunk| hunk.added.len()).sum(),
            removed: hunks().map(|hunk| hunk.removed.len()).sum(),
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} files, +{} -{}", self.files, self.added, self.removed)
    }
}

/// The notes above a diffstat, and the numbers of its last line.
fn split_diffstat(below: &str) -> (&str, Option<Counts>) {
    let is_file = |line: &str| line.starts_with(' ') && line.contains(" | ");
    let Some(start) = find_line(below, is_file) else { return (below, None) };
    let (notes, diffstat) = below.split_at(start);
    let summary = diffstat.lines().find(|line| line.contains(" changed"));
    let counts = summary.map(|line| {
        let mut counts = Counts::default();
        for part in line.split(',') {
            let number = part.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
            if part.contains("file") {
                counts.files = number;
            } else if part.contains("insertion") {
                counts.added = number;
            } else if part.contains("deletion") {
                counts.removed = number;
            }
        }
        counts
    });
    (notes, counts)
}

/// Parses a diff.
fn changes(diff: &str) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    // Lines that the open hunk still has: of the old file and of the new.
    let mut left = (0usize, 0usize);
    for line in diff.lines() {
        if left != (0, 0) {
            let hunk = changes.last_mut().and_then(|change| change.hunks.last_mut()).expect("a hunk is open");
            if let Some(text) = line.strip_prefix('+') {
                hunk.added.push(text.to_owned());
                left.1 = left.1.saturating_sub(1);
            } else if let Some(text) = line.strip_prefix('-') {
                hunk.removed.push(text.to_owned());
                left.0 = left.0.saturating_sub(1);
            } else if !line.starts_with('\\') {
                left = (left.0.saturating_sub(1), left.1.saturating_sub(1));
            }
            continue;
        }
        if let Some(paths) = line.strip_prefix("diff --git a/") {
            let (old, new) = paths.split_once(" b/").unwrap_or((paths, paths));
            changes.push(Change {
                path: new.to_owned(),
                old_path: Some(old.to_owned()),
                ..Change::default()
            });
            continue;
        }
        let Some(change) = changes.last_mut() else { continue };
        if line.starts_with("new file mode ") {
            change.old_path = None;
        } else if line.starts_with("deleted file mode ") {
            change.removed = true;
        } else if let Some(blobs) = line.strip_prefix("index ") {
            let blobs = blobs.split(' ').next().unwrap_or_default();
            change.index = blobs.split_once("..").map(|(old, new)| (old.to_owned(), new.to_owned()));
        } else if line.starts_with("@@ -") {
            let header = line.find(" @@").map_or(line, |end| &line[..end + 3]).to_owned();
            left = hunk_lengths(&header);
            change.hunks.push(Hunk { header, ..Hunk::default() });
        }
    }
    changes
}

/// The lengths of a hunk, in lines of the old and the new file.
fn hunk_lengths(header: &str) -> (usize, usize) {
    let mut ranges = header.split(' ').skip(1).map(|range| match range.split_once(',') {
        Some((_, length)) => length.parse().unwrap_or(0),
        None => 1,
    });
    (ranges.next().unwrap_or(0), ranges.next().unwrap_or(0))
}

/// Finds addresses that may not be there.
fn addresses(message: &str, changes: &[Change], problem: &mut impl FnMut(String, &str)) {
    for line in message.lines() {
        let trailer = line.split_once(':').map_or("", |(name, _)| name);
        if matches!(trailer, "From" | "Signed-off-by" | "Co-developed-by") {
            problem(
                format!("the message has a {trailer} line"),
                "remove it: author and sign-off are set when the patch is exported",
            );
        } else if let Some(address) = address_in(line)
            && (!PUBLIC_TRAILERS.contains(&trailer) || is_reserved(address))
        {
            problem(format!("the message has the address {address}"), "remove the address");
        }
    }
    for change in changes {
        for line in change.hunks.iter().flat_map(|hunk| &hunk.added) {
            if let Some(address) = address_in(line).filter(|address| is_reserved(address)) {
                problem(
                    format!("{} gets the address {address}, which does not exist", change.path),
                    "remove the address",
                );
            }
        }
    }
}

/// The first word of a line that is a mail address.
fn address_in(line: &str) -> Option<&str> {
    let separator = |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '"' | ',' | ';' | ':');
    line.split(separator).find(|word| {
        let Some((local, domain)) = word.split_once('@') else { return false };
        !local.is_empty()
            && !local.starts_with("//")
            && domain.contains('.')
            && domain.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
    })
}

fn is_reserved(address: &str) -> bool {
    RESERVED_DOMAINS.iter().any(|domain| address.ends_with(domain))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PATCH: &str = "\
Subject: sum: Subtract

The sum is a difference.

Cc: stable@vger.kernel.org
---
Objects-change: the function returns
  something else

 lib/sum.c | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/lib/sum.c b/lib/sum.c
index 1111111..2222222 100644
--- a/lib/sum.c
+++ b/lib/sum.c
@@ -1,4 +1,4 @@ int sum
 int sum(int a, int b)
 {
-\treturn a + b;
+\treturn a - b;
 }
";

    fn problems(text: &str) -> Vec<String> {
        PatchFile::parse(text, "g/0001-a.patch")
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|p| p.what)
            .collect()
    }

    #[test]
    fn a_patch_is_taken_apart() {
        let patch = PatchFile::parse(PATCH, "a").unwrap();
        assert_eq!(patch.subject, "sum: Subtract");
        assert_eq!(patch.message, "The sum is a difference.\n\nCc: stable@vger.kernel.org");
        assert_eq!(patch.objects_change().as_deref(), Some("the function returns something else"));
        let [change] = &patch.changes[..] else { panic!("{:?}", patch.changes) };
        assert_eq!(change.path, "lib/sum.c");
        assert_eq!(change.index, Some(("1111111".to_owned(), "2222222".to_owned())));
        assert_eq!(change.hunks[0].header, "@@ -1,4 +1,4 @@");
        assert_eq!(change.hunks[0].added, ["\treturn a - b;"]);
    }

    #[test]
    fn the_separator_of_a_mailbox_is_skipped() {
        let text = format!("From {} Mon Sep 17 00:00:00 2001\n{PATCH}", "0".repeat(40));
        assert_eq!(PatchFile::parse(&text, "a"), PatchFile::parse(PATCH, "a"));
    }

    #[rstest]
    #[case::author(
        "Subject: sum",
        "From: A <a@b.org>\nSubject: sum",
        "unexpected header `From: A <a@b.org>`"
    )]
    #[case::no_subject("Subject: sum: Subtract\n", "", "no Subject: header")]
    #[case::no_subsystem("sum: Subtract", "Subtract", "the subject names no subsystem")]
    #[case::no_message("The sum is a difference.\n\nCc: stable@vger.kernel.org\n", "", "no message")]
    #[case::no_separator("\n---\n", "\n\n", "no --- line below the message")]
    #[case::no_diffstat(
        " lib/sum.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n",
        "",
        "no diffstat"
    )]
    #[case::false_diffstat(
        "1 insertion(+)",
        "2 insertions(+)",
        "the diffstat says 1 files, +2 -1, the diff has 1 files, +1 -1"
    )]
    #[case::no_index("index 1111111..2222222 100644\n", "", "no index line for lib/sum.c")]
    #[case::sign_off(
        "Cc: stable@vger.kernel.org",
        "Signed-off-by: A <a@b.org>",
        "the message has a Signed-off-by line"
    )]
    #[case::address("The sum is", "Ask a@b.org: the sum is", "the message has the address a@b.org")]
    #[case::invented(
        "stable@vger.kernel.org",
        "x@vmmlinux.invalid",
        "the message has the address x@vmmlinux.invalid"
    )]
    #[case::added(
        "+\treturn a - b;",
        "+\treturn \"x@y.invalid\";",
        "lib/sum.c gets the address x@y.invalid, which does not exist"
    )]
    fn a_broken_rule_is_named(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
        assert!(PATCH.contains(from));
        let found = problems(&PATCH.replacen(from, to, 1));
        assert!(found.iter().any(|what| what == expected), "{found:?}");
    }

    #[test]
    fn a_subject_has_at_most_75_characters() {
        let long = format!("sum: {}", "a".repeat(71));
        assert_eq!(problems(&PATCH.replace("sum: Subtract", &long)), ["the subject has 76 characters"]);
    }
}
