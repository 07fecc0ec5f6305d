//! FreeSWITCH's gateways, which it registers with or calls; and its access lists, whose members
//! call without a password.

use super::Mention;

/// The mentions in one file. Only the XML that these files use is parsed: tags, attributes,
/// comments.
pub(super) fn mentions(text: &str) -> Vec<Mention> {
    let text = without_comments(text);
    let mut found = Vec::new();
    let mut gateway: Option<Gateway> = None;
    // The current access list, if its default is deny.
    let mut list: Option<String> = None;
    for (at, tag) in tags(&text) {
        let line = text[..at].matches('\n').count() + 1;
        if tag.starts_with("gateway") && !tag.starts_with("gateways") {
            gateway = attribute(tag, "name").map(|name| Gateway {
                name,
                line,
                realm: None,
                proxies: Vec::new(),
            });
        } else if tag.starts_with("/gateway") && !tag.starts_with("/gateways") {
            found.extend(gateway.take().map(Gateway::mentions).unwrap_or_default());
        } else if tag.starts_with("list") {
            let denies = attribute(tag, "default")
                .is_some_and(|default| default.eq_ignore_ascii_case("deny"));
            list = attribute(tag, "name").filter(|_| denies);
        } else if tag.starts_with("/list") {
            list = None;
        } else if let Some(list) = &list
            && tag.starts_with("node")
            && attribute(tag, "type").is_some_and(|kind| kind.eq_ignore_ascii_case("allow"))
        {
            let masked =
                || Some(format!("{}/{}", attribute(tag, "host")?, attribute(tag, "mask")?));
            let text = attribute(tag, "cidr").or_else(masked).or_else(|| attribute(tag, "host"));
            // `cidr` may have several values.
            let each = text
                .iter()
                .flat_map(|text| text.split(','))
                .map(str::trim)
                .filter(|text| !text.is_empty());
            let what = format!("FreeSWITCH access list {list}");
            found.extend(each.map(|text| Mention {
                text: text.to_owned(),
                what: what.clone(),
                line,
            }));
        } else if let Some(gateway) = &mut gateway
            && tag.starts_with("param")
            && let (Some(name), Some(value)) = (attribute(tag, "name"), attribute(tag, "value"))
        {
            match name.as_str() {
                "realm" => gateway.realm = Some((value, line)),
                "proxy" | "register-proxy" | "outbound-proxy" => {
                    gateway.proxies.push((value, line))
                }
                _ => {}
            }
        }
    }
    found
}

struct Gateway {
    name: String,
    line: usize,
    realm: Option<(String, usize)>,
    proxies: Vec<(String, usize)>,
}

impl Gateway {
    /// Its proxies; without any its realm, and without that its name.
    fn mentions(self) -> Vec<Mention> {
        let Self { name, line, realm, mut proxies } = self;
        if proxies.is_empty() {
            proxies.push(realm.unwrap_or_else(|| (name.clone(), line)));
        }
        proxies.dedup_by(|one, other| one.0 == other.0);
        let mention =
            |(text, line)| Mention { text, what: format!("FreeSWITCH gateway {name}"), line };
        proxies.into_iter().map(mention).collect()
    }
}

/// Replaces comments by blanks, so that line numbers are kept.
fn without_comments(text: &str) -> String {
    let (mut rest, mut plain) = (text, String::with_capacity(text.len()));
    while let Some((before, after)) = rest.split_once("<!--") {
        plain.push_str(before);
        let (comment, behind) = after.split_once("-->").unwrap_or((after, ""));
        plain.extend(comment.chars().filter(|c| *c == '\n'));
        rest = behind;
    }
    plain + rest
}

/// The tags, with their offsets.
fn tags(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('<').filter_map(|(at, _)| Some((at, text[at + 1..].split_once('>')?.0)))
}

/// The value of an attribute.
fn attribute(tag: &str, name: &str) -> Option<String> {
    tag.match_indices(name).find_map(|(at, _)| {
        let starts = tag[..at].ends_with(char::is_whitespace);
        let value =
            tag[at + name.len()..].trim_start().strip_prefix('=').filter(|_| starts)?.trim_start();
        let quote = value.chars().next().filter(|quote| "\"'".contains(*quote))?;
        Some(value[1..].split(quote).next()?.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways() {
        let text = "<include>\n <gateways>\n<gateway name=\"north\">\n  <param name=\"username\" \
                    value=\"us\"/>\n\
                    <param value='sip.north.example:5080' name='proxy'/>\n<param name=\"realm\" \
                    value=\"auth.north.example\"/>\n\
                    </gateway>\n<!-- <gateway name=\"old\">\n<param name=\"proxy\" \
                    value=\"192.0.2.1\"/></gateway> -->\n\
                    <gateway name=\"south\"><param name=\"realm\" \
                    value=\"$${domain}\"/></gateway>\n\
                    <gateway name=\"sip.east.example\">\n<param name=\"register\" \
                    value=\"true\"/>\n</gateway>\n</gateways>\n</include>";
        let found: Vec<_> =
            mentions(text).into_iter().map(|found| (found.text, found.what, found.line)).collect();
        let expected = [
            ("sip.north.example:5080", "FreeSWITCH gateway north", 5),
            ("$${domain}", "FreeSWITCH gateway south", 10),
            ("sip.east.example", "FreeSWITCH gateway sip.east.example", 11),
        ];
        assert_eq!(
            found,
            expected.map(|(text, what, line)| (text.to_owned(), what.to_owned(), line))
        );
    }

    #[test]
    fn access_lists() {
        let text = "<configuration name=\"acl.conf\"><network-lists>\n<list name=\"lan\" \
                    default=\"allow\">\n\
                    <node type=\"allow\" cidr=\"192.0.2.99/32\"/></list>\n<list name=\"trunks\" \
                    default=\"deny\">\n\
                    <node type=\"allow\" cidr=\"203.0.113.0/24, 192.0.2.7/32\"/>\n<node \
                    type=\"deny\" cidr=\"192.0.2.8/32\"/>\n\
                    <node type=\"allow\" domain=\"$${domain}\"/>\n<node type=\"allow\" \
                    host=\"198.51.100.0\" mask=\"255.255.255.0\"/>\n\
                    </list></network-lists></configuration>";
        let found: Vec<_> =
            mentions(text).into_iter().map(|found| (found.text, found.what, found.line)).collect();
        let expected =
            [("203.0.113.0/24", 5), ("192.0.2.7/32", 5), ("198.51.100.0/255.255.255.0", 8)];
        let what = "FreeSWITCH access list trunks";
        assert_eq!(found, expected.map(|(text, line)| (text.to_owned(), what.to_owned(), line)));
    }

    #[test]
    fn other_files_have_no_mentions() {
        for text in [
            "",
            "<",
            "<gateway",
            "<gateway name=>",
            "<gateway name=\"a",
            "<!-- <gateway name='a'>",
            "</gateway>",
        ] {
            assert!(mentions(text).is_empty(), "{text}");
        }
    }
}
