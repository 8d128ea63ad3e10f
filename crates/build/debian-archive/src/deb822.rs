//! Debian's control file format, deb822: stanzas of fields.

/// The stanzas of a text: names of fields with their values, continuation lines included unchanged.
pub(crate) fn stanzas(text: &str) -> impl Iterator<Item = Vec<(String, String)>> {
    let mut all = vec![Vec::<(String, String)>::new()];
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let current = all.last_mut().expect("never empty");
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = current.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all.into_iter().filter(|stanza| !stanza.is_empty())
}
