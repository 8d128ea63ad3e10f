//! Logical lines of a Kconfig file: continuations joined, comments and help texts dropped.

/// A logical line and the number, from 1, of the first physical line it stands on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) text: String,
}

/// Splits a file. Help texts end at the first line that is indented less than their first.
pub(crate) fn lines(file: &str) -> Vec<Line> {
    let mut out = Vec::new();
    let mut physical = file.lines().enumerate().peekable();
    while let Some((index, first)) = physical.next() {
        let mut text = uncomment(first).to_owned();
        while text.ends_with('\\') {
            text.pop();
            let Some((_, next)) = physical.next() else { break };
            text.push_str(uncomment(next).trim_start());
        }
        let text = text.trim();
        if matches!(text, "help" | "---help---") {
            let mut indent = None;
            while let Some((_, line)) = physical.peek() {
                if !line.trim().is_empty() {
                    let own = indentation(line);
                    if own < *indent.get_or_insert(own.max(1)) {
                        break;
                    }
                }
                physical.next();
            }
        } else if !text.is_empty() {
            out.push(Line { number: index + 1, text: text.to_owned() });
        }
    }
    out
}

/// The line up to a `#` that stands outside quotes.
fn uncomment(line: &str) -> &str {
    let mut quote = None;
    for (index, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') => return line[..index].trim_end(),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    line.trim_end()
}

/// Columns of white space, tabs to multiples of eight.
fn indentation(line: &str) -> usize {
    let mut columns = 0;
    for c in line.chars() {
        match c {
            ' ' => columns += 1,
            '\t' => columns = (columns / 8 + 1) * 8,
            _ => break,
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_comments_and_continuations_disappear() {
        let file = "# c\nconfig A\n\tbool \"x # y\" # z\n\tdepends on B && \\\n\t\tC\n\thelp\n\t  select X\n\n\t  if Y\n\tdefault y\nendif\n";
        let texts: Vec<_> = lines(file).into_iter().map(|l| (l.number, l.text)).collect();
        let expected = [
            (2, "config A"),
            (3, "bool \"x # y\""),
            (4, "depends on B && C"),
            (10, "default y"),
            (11, "endif"),
        ];
        assert_eq!(texts, expected.map(|(n, t)| (n, t.to_owned())));
    }

    #[test]
    fn a_help_text_that_is_not_indented_is_empty() {
        let texts: Vec<_> = lines("config A\n\thelp\nconfig B\n").into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["config A", "config B"]);
    }
}
