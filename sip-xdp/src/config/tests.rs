//! Tests of the configuration: defaults, errors, and the packaged file.

use super::*;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn nothing_is_the_default() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
    assert_eq!(
        Config::parse(&toml::to_string(&Config::default()).unwrap()).unwrap(),
        Config::default()
    );
}

#[test]
fn the_documentation_has_the_defaults() {
    let packaged = include_str!("../../packaging/config.toml");
    assert_eq!(Config::parse(packaged).unwrap(), Config::default(), "as it is installed");
    // With every setting uncommented. Example host names are not defaults.
    let spelt_out: Vec<&str> = packaged
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
                .unwrap_or(line)
        })
        .filter(|line| {
            !["interfaces", "networks = [", "hosts = ["].iter().any(|key| line.starts_with(key))
        })
        .collect();
    assert_eq!(Config::parse(&spelt_out.join("\n")).unwrap(), Config::default(), "spelt out");
    assert!(spelt_out.iter().filter(|line| line.contains(" = ")).count() > 15);

    let first_block = |chapter: &'static str| {
        chapter.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap()
    };
    let block = first_block(include_str!("../../../docs/reference/configuration.md"));
    assert_eq!(Config::parse(block).unwrap(), Config::default(), "in the manual");
    let feed = first_block(include_str!("../../../docs/feeds.md"));
    let Config { feeds, .. } = Config::parse(feed).unwrap();
    assert_eq!(
        feeds,
        [FeedConfig::new("example", "https://lists.example/sip.txt")],
        "a feed in the manual"
    );
    // The reference is complete.
    let Value::Table(all) = Value::try_from(Config::default()).unwrap() else {
        panic!("not a table")
    };
    let written: Table = toml::from_str(block).unwrap();
    assert_eq!(keys(&Value::Table(written), ""), keys(&Value::Table(all), ""));
}

fn keys(value: &Value, path: &str) -> std::collections::BTreeSet<String> {
    match value {
        Value::Table(table) => {
            table.iter().flat_map(|(key, value)| keys(value, &format!("{path}.{key}"))).collect()
        }
        _ => [path.to_owned()].into(),
    }
}

#[test]
fn reads_what_people_write() {
    let config = Config::parse(
        "interfaces = [\"eth0\", \"eth0.7\"]\nports = [5060, \"5080-5090\"]\nmode \
         = \"generic\"\ndry_run = true\n\
         learn = \"1h\"\nblock_scope = \"all\"\n[trust]\nnetworks = \
         [\"203.0.113.0/24\", \"2001:db8::1\"]\n\
         [limits.unknown]\nregister = { count = 10, per = \"1m\" }\n[detect.register]\nenabled = \
         false\n\
         count = 10\nper = \"60s\"\n[bans]\nunproven = \"90s\"\n",
    )
    .unwrap();
    assert_eq!(config.interfaces, ["eth0", "eth0.7"]);
    assert_eq!(config.ports[1], PortRange { first: 5080, last: 5090 });
    assert_eq!(config.limits.unknown.register.count, 10);
    assert_eq!(config.limits.unknown.requests.count, 50);
    assert!(!config.detect.register.enabled && config.detect.requests.enabled);
    assert_eq!(config.bans.unproven, Span::seconds(90));
    assert!(config.port_set().contains(5085) && !config.port_set().contains(5061));
    assert_eq!(config.trust.networks.len(), 2);
}

#[test]
fn names_an_unknown_key_and_the_nearest_one() {
    assert_eq!(error("\nintefaces = []\n"), ":2: unknown key intefaces; did you mean interfaces?");
    assert_eq!(
        error("[limits.unknown]\n\nregisters = { count = 1, per = \"1s\" }"),
        ":3: unknown key limits.unknown.registers; did you mean limits.unknown.register?"
    );
    assert_eq!(error("[detec.register]\ncount = 3"), ":1: unknown key detec; did you mean detect?");
}

#[test]
fn refuses_what_cannot_be_meant() {
    for (text, expected) in [
        ("ports = []", "ports is empty"),
        ("ports = [0]", "\"0\" is not a port"),
        ("ports = [70000]", "\"70000\" is not a port"),
        ("ports = [\"5090-5060\"]", "write 5060-5090"),
        ("mode = \"fast\"", "unknown variant `fast`"),
        ("policy = \"shut\"", "unknown variant `shut`, expected `open` or `closed`"),
        ("ipv6_prefix = 8", "ipv6_prefix = 8 is out of range"),
        ("[trust]\nnetworks = [\"192.0.2.1/24\"]", "write 192.0.2.0/24 for the network"),
        ("[trust]\nnetworks = [\"0.0.0.0/0\"]", "would switch the filter off"),
        (
            "[limits.unknown]\nrequests = { count = 0, per = \"1s\" }",
            "limits.unknown.requests.count = 0",
        ),
        ("[limits.unknown]\nrequests = { count = 5, per = \"10\" }", "is not a duration"),
        (
            "[limits.unknown]\nother = { count = 10001, per = \"1s\" }",
            "lower count or lengthen per",
        ),
        ("[bans]\nunproven = \"2d\"", "bans.unproven = \"2d\" is out of range"),
        ("interfaces = eth0", ":1: "),
    ] {
        let error = error(text);
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn durations_are_shown_as_they_are_written() {
    for text in ["500ms", "60s", "10m", "24h", "7d", "1h 30m"] {
        let span: Span = text.parse().unwrap();
        assert_eq!(span.to_string().parse::<Span>().unwrap(), span, "{text} -> {span}");
    }
}
