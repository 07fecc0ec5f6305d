//! Where keys stand in a configuration file, by the parser's own positions.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of a file.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    /// The path: `detect.rejected.count`.
    path: String,
    /// Where the key stands.
    key: Range<usize>,
    /// Where its value stands; for a table its header.
    value: Range<usize>,
}

impl Keys {
    /// Reads the keys of a text; none of one that cannot be parsed.
    pub(super) fn of(text: &str) -> Self {
        let mut keys = Self::default();
        if let Ok(table) = DeTable::parse(text) {
            keys.add_table(table.get_ref(), "");
        }
        keys
    }

    fn add_table(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            self.0.push(Key { path: path.clone(), key: key.span(), value: value.span() });
            self.add_value(value, &path);
        }
    }

    fn add_value(&mut self, value: &Spanned<DeValue<'_>>, path: &str) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(table, &format!("{path}.")),
            DeValue::Array(all) => all.iter().for_each(|one| self.add_value(one, path)),
            _ => {}
        }
    }

    /// The path of the key at a position, or whose value is there.
    pub(super) fn at(&self, position: usize) -> Option<&str> {
        let holds = |span: &Range<usize>| span.contains(&position);
        let around = self.0.iter().filter(|key| holds(&key.value) || holds(&key.key));
        around.min_by_key(|key| key.value.len()).map(|key| key.path.as_str())
    }

    /// Where the key with this path stands.
    pub(super) fn find(&self, path: &str) -> Option<Range<usize>> {
        self.0.iter().find(|key| key.path == path).map(|key| key.key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_wherever_they_stand() {
        let text = "mode = \"auto\"\ndetect.slow.count = 3\n[limits.unknown]\n\
                    register = { count = 0, per = \"60s\" }\n[[feeds]]\nname = \"a\"\n";
        let keys = Keys::of(text);
        let line = |path| keys.find(path).map(|at| 1 + text[..at.start].matches('\n').count());
        assert_eq!(
            ["mode", "detect.slow.count", "limits.unknown.register.count", "feeds.name", "ports"]
                .map(line),
            [Some(1), Some(2), Some(4), Some(6), None]
        );
        let at = |what: &str| keys.at(text.find(what).unwrap());
        assert_eq!(
            ["\"auto\"", "3", "0,", "\"60s\"", "\"a\"", "register"].map(at),
            [
                Some("mode"),
                Some("detect.slow.count"),
                Some("limits.unknown.register.count"),
                Some("limits.unknown.register.per"),
                Some("feeds.name"),
                Some("limits.unknown.register"),
            ]
        );
        assert_eq!(Keys::of("mode = ").at(0), None);
    }
}
