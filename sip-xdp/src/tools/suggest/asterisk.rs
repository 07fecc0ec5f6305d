//! Asterisk's `pjsip.conf` and its includes: the addresses that identify an endpoint, and the
//! servers of registrations.

use super::Mention;

/// The mentions in one file.
pub(super) fn mentions(text: &str) -> Vec<Mention> {
    let (mut section, mut found, mut in_comment) = (String::new(), Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        // Multi-line comments are between `;--` and `--;`.
        if in_comment {
            in_comment = !line.contains("--;");
            continue;
        }
        if line.trim_start().starts_with(";--") && !line.contains("--;") {
            in_comment = true;
            continue;
        }
        let line = uncommented(line);
        if let Some(rest) = line.strip_prefix('[') {
            section = rest.split(']').next().unwrap_or_default().to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        // `key => value` is equivalent.
        let value = value.trim_start_matches('>').trim();
        let (what, many) = match key.trim() {
            "match" => ("identify", true),
            "remote_hosts" => ("wizard", true),
            "server_uri" => ("registration", false),
            "outbound_proxy" => ("outbound proxy", false),
            _ => continue,
        };
        let values: Vec<&str> = if many { value.split(',').collect() } else { vec![value] };
        let values = values.into_iter().map(str::trim).filter(|value| !value.is_empty());
        found.extend(values.map(|value| Mention {
            text: value.replace("\\;", ";"),
            what: format!("pjsip {what} {section}"),
            line: number + 1,
        }));
    }
    found
}

/// A line without its comment. A semicolon behind a backslash is literal.
fn uncommented(line: &str) -> &str {
    let is_comment = |at: &usize| !line[..*at].ends_with('\\');
    let end = line.match_indices(';').map(|(at, _)| at).find(is_comment).unwrap_or(line.len());
    line[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifies_and_registrations() {
        let text = "; carriers\n[north](template)\ntype = identify\nendpoint = north\nmatch = \
                    203.0.113.4,203.0.113.8/29 ; both sites\n\
                    match => gw.north.example\n;match = 192.0.2.99\n;--\nmatch = 192.0.2.98\n--;\n\
                    [south-reg]\ntype=registration\n\
                    server_uri=sip:sip.south.example:5060\\;transport=tcp\n\
                    client_uri=sip:us@south.example\n\
                    match_header=X-Y: 1\n[east]\nremote_hosts = \
                    sip.east.example:5080\noutbound_proxy=sip:198.51.100.9\\;lr\n";
        let found: Vec<_> =
            mentions(text).into_iter().map(|found| (found.text, found.what, found.line)).collect();
        let expected = [
            ("203.0.113.4", "pjsip identify north", 5),
            ("203.0.113.8/29", "pjsip identify north", 5),
            ("gw.north.example", "pjsip identify north", 6),
            ("sip:sip.south.example:5060;transport=tcp", "pjsip registration south-reg", 13),
            ("sip.east.example:5080", "pjsip wizard east", 17),
            ("sip:198.51.100.9;lr", "pjsip outbound proxy east", 18),
        ];
        assert_eq!(
            found,
            expected.map(|(text, what, line)| (text.to_owned(), what.to_owned(), line))
        );
    }
}
