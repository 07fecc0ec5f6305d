//! Kamailio's and OpenSIPS's list files: the destinations of the dispatcher, and the addresses of
//! permissions.

use super::Mention;

/// `SET DESTINATION ...`, one per line.
pub(super) fn dispatchers(text: &str) -> Vec<Mention> {
    rows(text)
        .filter_map(|(line, fields)| {
            let destination = *fields.get(1)?;
            let is_uri = destination.starts_with("sip:") || destination.starts_with("sips:");
            is_uri.then(|| Mention {
                text: destination.to_owned(),
                what: format!("dispatcher set {}", fields[0]),
                line,
            })
        })
        .collect()
}

/// `GROUP ADDRESS PREFIX PORT TAG`, one per line; the prefix may follow the address behind a slash,
/// or be missing.
pub(super) fn addresses(text: &str) -> Vec<Mention> {
    rows(text)
        .filter_map(|(line, fields)| {
            let address = *fields.get(1)?;
            fields[0].parse::<u32>().ok()?;
            let prefix = fields
                .get(2)
                .filter(|prefix| prefix.parse::<u8>().is_ok() && !address.contains('/'));
            let text =
                prefix.map_or_else(|| address.to_owned(), |prefix| format!("{address}/{prefix}"));
            Some(Mention { text, what: format!("permissions group {}", fields[0]), line })
        })
        .collect()
}

/// The fields of lines that are no comments, with line numbers.
fn rows(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let lines = text.lines().enumerate();
    lines.map(|(number, line)| {
        (number + 1, line.split('#').next().unwrap_or_default().split_whitespace().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(found: Vec<Mention>) -> Vec<(String, usize)> {
        found.into_iter().map(|mention| (mention.text, mention.line)).collect()
    }

    #[test]
    fn destinations() {
        let text = "# set destination flags\n1 sip:192.0.2.1:5060;transport=udp 0 5 duid=a\n\n2 \
                    sips:media.example 0\n3\nnonsense here\n";
        let found = dispatchers(text);
        assert_eq!(found[0].what, "dispatcher set 1");
        let expected = [
            ("sip:192.0.2.1:5060;transport=udp".to_owned(), 2),
            ("sips:media.example".to_owned(), 4),
        ];
        assert_eq!(pairs(found), expected);
    }

    #[test]
    fn permitted_addresses() {
        let text = "#(grp ip mask port tag)\n1 203.0.113.0 24 0 north\n1 192.0.2.7 32 5060\n2 \
                    2001:db8::/32 0 0\n3 198.51.100.9\nx 192.0.2.8 32\n";
        let found = addresses(text);
        assert_eq!(found[3].what, "permissions group 3");
        let expected =
            [("203.0.113.0/24", 2), ("192.0.2.7/32", 3), ("2001:db8::/32", 4), ("198.51.100.9", 5)];
        assert_eq!(pairs(found), expected.map(|(text, line)| (text.to_owned(), line)));
    }
}
