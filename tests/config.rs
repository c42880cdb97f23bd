//! The configuration database: each key with a wrong value, several faults at once, the shipped files.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use sametime_mux::config::{self, ConfigErrors, ConfigPlace, Settings};

/// A key, a wrong value, and a part of the message about it.
const WRONG: &[(&str, &str, &str)] = &[
    ("client_connections.host_name", "\"not a name\"", "\"not a name\" is neither an address nor a name"),
    ("client_connections.host_name", "1", "1: invalid type: integer"),
    ("client_connections.host_name", "\"[10.0.0.1]\"", "\"[10.0.0.1]\" is neither an address nor a name"),
    ("client_connections.host_name", "\"10.0.0.256\"", "\"10.0.0.256\" is neither an address nor a name"),
    ("client_connections.host_name", "\"127.1\"", "\"127.1\" is neither an address nor a name"),
    ("client_connections.host_name", "\"0x7f000001\"", "\"0x7f000001\" is neither an address nor a name"),
    ("client_connections.host_name", "\"a..\"", "\"a..\" is neither an address nor a name"),
    ("client_connections.ports", "[0]", "0 is no port"),
    ("client_connections.ports", "[65536]", "65536 is no port"),
    ("client_connections.ports", "[-1]", "-1 is no port"),
    ("client_connections.ports", "[1533, 1533]", "port 1533 stands there twice"),
    ("client_connections.ports", "1533", "1533: invalid type: integer"),
    ("client_connections.ports", "[\"1533\"]", "invalid type: string"),
    ("http_tunneled_client_connections.host_name", "\"-a-\"", "\"-a-\" is neither an address nor a name"),
    ("http_tunneled_client_connections.ports", "[1533]", "port 1533 stands in [client_connections], too"),
    ("https_tunneled_client_connections.host_name", "\"a..b\"", "\"a..b\" is neither an address nor a name"),
    ("https_tunneled_client_connections.ports", "[80]", "port 80 stands in [http_tunneled_client_connections], too"),
    ("listeners.require_all", "\"yes\"", "invalid type: string"),
    ("listeners.share_ports", "1", "1: invalid type: integer"),
    ("listeners.proxy_protocol_from", "[\"10.0.0.0/33\"]", "\"10.0.0.0/33\" is no network"),
    ("listeners.proxy_protocol_from", "[\"::ffff:10.0.0.0/95\"]", "a prefix of less than 96 bits"),
    ("listeners.forwarded_for_from", "[\"proxy.example\"]", "\"proxy.example\" is no network"),
    ("community.servers", "[]", "there is no server"),
    ("community.servers", "[\"chat.example\"]", "\"chat.example\" has no port"),
    ("community.servers", "[\"chat.example:0\"]", "\"chat.example:0\" has no legal port"),
    ("community.servers", "[\"::1:1533\"]", "\"::1:1533\" has no legal host; an IPv6 address stands in brackets"),
    ("community.servers", "[\"a:1533\", \"a:1533\"]", "\"a:1533\" stands there twice"),
    ("community.servers", "[\"a:1533\", \"A.:1533\"]", "\"A.:1533\" stands there twice"),
    ("community.servers", "[\"[::1]:1533\", \"[0:0::1]:1533\"]", "\"[0:0::1]:1533\" stands there twice"),
    ("community.servers", "[\"10.0.0.1:1\", \"[::ffff:10.0.0.1]:1\"]", "stands there twice"),
    ("community.servers", "[\"a:+1533\"]", "\"a:+1533\" has no legal port"),
    ("community.servers", "[\"a:99999\"]", "\"a:99999\" has no legal port"),
    ("community.servers", "[\"a:1 weight=0\"]", "\"a:1 weight=0\": a weight is 1 to 256"),
    ("community.servers", "[\"a:1 weight=257\"]", "a weight is 1 to 256"),
    ("community.servers", "[\"a:1 weight=+3\"]", "a weight is 1 to 256"),
    ("community.servers", "[\"a:1 weight=2 weight=3\"]", "\"weight\" stands there twice"),
    ("community.servers", "[\"a:1 wait=3\"]", "\"wait=3\" is no word for a server"),
    ("community.servers", "[\"a:1 weight=2\", \"a:1\"]", "\"a:1\" stands there twice"),
    ("community.servers", "[\"[10.0.0.1]:1533\"]", "\"[10.0.0.1]\" is neither an address nor a name"),
    ("community.servers", "[\"10.0.0.256:1533\"]", "\"10.0.0.256\" is neither an address nor a name"),
    ("community.balance", "\"random\"", "unknown variant `random`"),
    ("community.recalculate_after", "0", "0 is out of bounds"),
    ("community.slow_start", "\"2h\"", "\"2h\" is out of bounds"),
    ("community.link", "\"tunnel\"", "unknown variant `tunnel`"),
    ("community.link", "\"trunk\"", "the sandbox has no trunk"),
    ("community.send_proxy_protocol", "true", "the sandbox does not expect a PROXY header"),
    ("community.send_proxy_protocol", "2", "2: invalid type: integer"),
    ("community.connect_timeout", "\"0s\"", "\"0s\" is out of bounds"),
    ("community.handshake_timeout", "\"10ms\"", "\"10ms\" is out of bounds"),
    ("community.check", "\"ping\"", "unknown variant `ping`"),
    ("community.check_interval", "\"2h\"", "\"2h\" is out of bounds"),
    ("trunk.connections", "0", "0 is out of bounds"),
    ("trunk.tls", "\"\"", "invalid type: string"),
    ("trunk.certificate_authority", "false", "false: invalid type: boolean"),
    ("trunk_listener.host_name", "\"*\"", "\"*\" is neither an address nor a name"),
    ("trunk.certificate", "1", "1: invalid type: integer"),
    ("trunk.private_key", "\"near.key\"", "belong together"),
    ("trunk.target", "\"1533\"", "\"1533\" has no port"),
    ("trunk_listener.ports", "[70000]", "70000 is no port"),
    ("trunk_listener.tls", "\"yes\"", "invalid type: string"),
    ("trunk_listener.client_ca", "1", "1: invalid type: integer"),
    ("trunk_listener.target", "\"1533\"", "\"1533\" has no port"),
    ("http_backend.url", "\"https://web.example\"", "does not begin with http://"),
    ("http_backend.url", "\"http://web.example/path\"", "is more, or less, than http://host:port"),
    ("http_backend.url", "\"web.example\"", "does not begin with http://"),
    ("http_backend.url", "\"http://web.example:99999\"", "\"web.example:99999\" has no legal port"),
    ("http_backend.url", "\"http://web.example:0\"", "\"web.example:0\" has no legal port"),
    ("http_backend.url", "\"http://web.example:\"", "\"web.example:\" has no legal port"),
    ("http_backend.url", "\"http://[::1]:65536\"", "\"[::1]:65536\" has no legal port"),
    ("http_backend.url", "\"http://web.example#part\"", "is more, or less, than http://host:port"),
    ("http_backend.url", "\"http://user@web.example\"", "is more, or less, than http://host:port"),
    ("http_backend.url", "\"http://10.0.0.256\"", "\"10.0.0.256\" is neither an address nor a name"),
    ("http_backend.connections", "0", "0 is out of bounds"),
    ("http_backend.response_timeout", "\"99ms\"", "is out of bounds"),
    ("tls.certificate", "\"\"", "\"\" is no file"),
    ("tls.private_key", "7", "7: invalid type: integer"),
    ("tls.client_certificates", "\"on\"", "unknown variant `on`"),
    ("tls.client_ca", "true", "true: invalid type: boolean"),
    ("limits.capacity", "0", "0 is out of bounds"),
    ("limits.capacity", "1.5", "1.5: invalid type: floating point"),
    ("limits.per_address", "30000", "30000 is more than limits.capacity"),
    ("limits.per_address", "-1", "-1 is out of bounds"),
    ("limits.logging_in", "0", "0 is out of bounds"),
    ("limits.logging_in_per_address", "-1", "-1 is out of bounds"),
    ("limits.logging_in_timeout", "\"100ms\"", "\"100ms\" is out of bounds"),
    ("limits.tunnel_sessions", "0", "0 is out of bounds"),
    ("limits.tunnel_sessions_per_address", "\"1\"", "invalid type: string"),
    ("limits.connections", "0", "0 is out of bounds"),
    ("limits.connections_per_address", "2000000", "2000000 is out of bounds"),
    ("limits.connection_rate", "-1", "-1 is out of bounds"),
    ("limits.connection_rate_per_address", "-1", "-1 is out of bounds"),
    ("limits.vanished_timeout", "\"1s\"", "\"1s\" is out of bounds"),
    ("limits.held_bytes", "1000", "1000 is out of bounds"),
    ("limits.held_bytes_per_address", "1", "1 is out of bounds"),
    ("limits.held_bytes_per_address", "536870912", "536870912 is more than limits.held_bytes"),
    ("limits.exempt", "[\"proxy\"]", "\"proxy\" is no network"),
    ("limits.login_timeout", "30", "30: invalid type: integer"),
    ("limits.login_timeout", "\"soon\"", "\"soon\" is no duration"),
    ("limits.idle_timeout", "\"31d\"", "\"31d\" is out of bounds"),
    ("limits.max_frame", "100", "100 is out of bounds"),
    ("limits.drain_timeout", "\"25h\"", "\"25h\" is out of bounds"),
    ("tunnel.hold", "\"10m\"", "\"10m\" is out of bounds"),
    ("tunnel.reply_wait", "\"1m\"", "\"1m\" is out of bounds"),
    ("tunnel.session_timeout", "\"0s\"", "\"0s\" is out of bounds"),
    ("tunnel.stream_keep_alive", "\"2h\"", "\"2h\" is out of bounds"),
    ("tunnel.version", "2", "2 is out of bounds"),
    ("tunnel.same_address", "1", "1: invalid type: integer"),
    ("tunnel.window", "1", "1 is out of bounds"),
    ("cluster.node", "\"a b\"", "\"a b\" is no name of a node"),
    ("cluster.peer", "1", "neither a string nor a table of strings"),
    ("cluster.peer", "\"http://mux:9534\"", "\"http://mux:9534\" has no {node}"),
    ("cluster.peer", "\"https://{node}:9534\"", "does not begin with http://"),
    ("cluster.peer", "{}", "there is no node"),
    ("cluster.nodes", "[\"a\", \"A\"]", "\"A\" stands there twice"),
    ("cluster.listen", "\"9534\"", "\"9534\" is no address with a port"),
    ("cluster.secret_file", "[]", "[]: invalid type: sequence"),
    ("admin.listen", "\"9533\"", "\"9533\" is no address with a port"),
    ("admin.listen", "\"127.0.0.1:0\"", "\"127.0.0.1:0\" has no port"),
    ("admin.token_file", "[]", "[]: invalid type: sequence"),
    ("log.format", "\"xml\"", "unknown variant `xml`"),
    ("log.level", "\"loud\"", "unknown variant `loud`"),
];

/// With the sandbox, where `text` names no servers.
fn parse(text: &str) -> Result<Settings, ConfigErrors> {
    let sandbox = ("SAMETIME_MUX__COMMUNITY__SERVERS".to_owned(), "sandbox".to_owned());
    let variables = (!text.contains("servers = ")).then_some(sandbox);
    config::parse(text, Path::new("st.toml"), variables.into_iter())
}

fn faults(text: &str) -> Vec<String> {
    let faults = parse(text).expect_err(text);
    faults.to_string().lines().map(str::to_owned).collect()
}

/// Parses a file with `capacity = 7`, and environment variables.
fn parse_with(variables: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let own = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let text = "\n[limits]\ncapacity = 7\n[community]\nservers = [\"sandbox\"]\n";
    config::parse(text, Path::new("st.toml"), own)
}

#[test]
fn each_wrong_key_is_reported_with_file_line_key_and_legal_values() {
    let mut tried = BTreeSet::new();
    for (key, value, message) in WRONG {
        let (section, name) = key.split_once('.').unwrap();
        let legal = config::keys().into_iter().find(|k| k.section == section && k.name == name).expect(key).legal;
        let found = faults(&format!("# a comment\n\n[{section}]\n\n{name} = {value}\n"));
        assert_eq!(found.len(), 1, "{key} = {value}: {found:#?}");
        let begin = format!("st.toml:5: {key}: ");
        assert!(found[0].starts_with(&begin) && found[0].contains(message), "{key} = {value}: {}", found[0]);
        assert!(found[0].ends_with(&format!(" ({legal})")) && !legal.is_empty(), "{}", found[0]);
        tried.insert((*key).to_owned());
    }
    let all: BTreeSet<String> = config::keys().iter().map(|key| format!("{}.{}", key.section, key.name)).collect();
    assert_eq!(tried, all, "a key that is not tried, or does not exist");
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_the_file() {
    let found = faults(
        "loose = 1\n[limit]\n[limits]\ncapacty = 3\nmax_frame = \"big\"\nper_address = -1\n[tls]\ncertificate = 3\n[tunnel]\nversion = 9\n",
    );
    let begins: Vec<&str> = found.iter().map(|line| line.split(" (").next().unwrap()).collect();
    assert_eq!(
        begins,
        [
            "st.toml:1: loose: a key outside any section",
            "st.toml:2: limit: no such section",
            "st.toml:4: limits.capacty: no such key",
            "st.toml:5: limits.max_frame: \"big\": invalid type: string \"big\", expected i64",
            "st.toml:6: limits.per_address: -1 is out of bounds",
            "st.toml:8: tls.certificate: 3: invalid type: integer `3`, expected a string",
            "st.toml:10: tunnel.version: 9 is out of bounds",
        ]
    );
    assert!(found[1].contains("did you mean limits? the sections are client_connections, "), "{}", found[1]);
    assert!(found[2].contains("did you mean capacity? the keys of [limits] are capacity, "), "{}", found[2]);
}

#[test]
fn text_that_is_not_toml_is_reported_with_its_line() {
    for (text, line) in
        [("[limits\n", 1), ("[limits]\ncapacity = \n", 2), ("[limits]\ncapacity = 1\ncapacity = 2\n", 3)]
    {
        let found = parse(text).expect_err(text);
        assert_eq!(found.faults[0].place, ConfigPlace::Line(line), "{found}");
    }
}

#[test]
fn nothing_to_listen_on_is_a_fault() {
    let none = "[client_connections]\nports = []\n[http_tunneled_client_connections]\nports = []\n[https_tunneled_client_connections]\nports = []\n";
    assert!(faults(none)[0].contains("no section has a port"));
    assert!(faults("[tls]\nclient_certificates = \"optional\"\n")[0].contains("there must be a file"));
    assert!(faults("[admin]\nlisten = \"0.0.0.0:9533\"\n")[0].contains("there must be a token"));
}

#[test]
fn a_port_may_be_used_twice_on_different_addresses() {
    let two = "[client_connections]\nhost_name = \"127.0.0.1\"\nports = [1533]\n[http_tunneled_client_connections]\nhost_name = \"127.0.0.2\"\nports = [1533]\n";
    assert_eq!(parse(two).unwrap().ingress.listeners.len(), 3);
}

#[test]
fn servers_have_no_default() {
    let missing = |text: &str| config::parse(text, Path::new("st.toml"), std::iter::empty()).unwrap_err().to_string();
    assert!(missing("").starts_with("st.toml: community.servers: the key is missing, and it has no default ("));
    assert!(missing("\n[community]\n").starts_with("st.toml:2: community.servers: the key is missing"));
    let wrong = missing("[community]\nservers = 5\n");
    assert_eq!(wrong.lines().count(), 1, "a key that is wrong is not missing: {wrong}");
}

#[test]
fn the_environment_overrides_the_file_and_is_checked_as_strictly() {
    assert_eq!(parse_with(&[]).unwrap().mux.capacity, 7);
    let settings = parse_with(&[
        ("SAMETIME_MUX__LIMITS__CAPACITY", "12"),
        ("SAMETIME_MUX__LIMITS__LOGIN_TIMEOUT", "3s"),
        ("SAMETIME_MUX__CLIENT_CONNECTIONS__PORTS", "1533,1534"),
        ("SAMETIME_MUX__HTTP_TUNNELED_CLIENT_CONNECTIONS__PORTS", "[]"),
        ("SAMETIME_MUX__COMMUNITY__SERVERS", "a:1533, b:1533"),
        ("SAMETIME_MUX__ADMIN__LISTEN", ""),
        ("SAMETIME_MUX_CONFIG", "elsewhere.toml"),
        ("PATH", "/bin"),
    ]);
    let settings = settings.unwrap();
    assert_eq!((settings.mux.capacity, settings.mux.login_timeout), (12, Duration::from_secs(3)));
    assert_eq!(settings.ingress.listeners.iter().map(|l| l.port).collect::<Vec<_>>(), [1533, 1534, 443]);
    assert_eq!((settings.community.servers.len(), settings.admin.listen), (2, None));

    let wrong = parse_with(&[("SAMETIME_MUX__LIMITS__CAPACITY", "many"), ("SAMETIME_MUX__LIMITS__CAPACTY", "1")]);
    let wrong = wrong.unwrap_err().to_string();
    assert!(wrong.contains("environment variable SAMETIME_MUX__LIMITS__CAPACITY: limits.capacity: many"), "{wrong}");
    assert!(wrong.contains("SAMETIME_MUX__LIMITS__CAPACTY: no such key (did you mean SAMETIME_MUX__LIMITS__CAPACITY?"));
}

/// Keys of which "" is a legal value: their variable, when it is empty, has that value.
const MAY_BE_EMPTY: &[&str] = &[
    "client_connections.host_name",
    "http_tunneled_client_connections.host_name",
    "https_tunneled_client_connections.host_name",
    "cluster.node",
    "cluster.peer",
    "cluster.listen",
    "cluster.secret_file",
    "trunk.certificate_authority",
    "trunk.certificate",
    "trunk.private_key",
    "trunk_listener.client_ca",
    "trunk_listener.host_name",
    "http_backend.url",
    "tls.client_ca",
    "admin.listen",
    "admin.token_file",
];

#[test]
fn an_empty_variable_is_a_legal_empty_value_or_an_error_and_never_an_empty_list() {
    let text = "[client_connections]\nhost_name = \"127.0.0.1\"\n[http_backend]\nurl = \"http://127.0.0.1:8088\"\n\
        [community]\nservers = [\"sandbox\"]\n";
    let parse = |name: &str, value: &str| {
        config::parse(text, Path::new("st.toml"), std::iter::once((name.to_owned(), value.to_owned())))
    };
    for key in config::keys() {
        let full = format!("{}.{}", key.section, key.name);
        let name = format!("SAMETIME_MUX__{}__{}", key.section.to_uppercase(), key.name.to_uppercase());
        if MAY_BE_EMPTY.contains(&&*full) {
            let settings = parse(&name, "").unwrap_or_else(|faults| panic!("{faults}"));
            assert_eq!(settings, parse(&name, "\"\"").unwrap(), "{full}: it is the same as \"\"");
            assert!(key.legal.contains("\"\""), "{full}: {}", key.legal);
            continue;
        }
        // Lists have separators, which make no item.
        let is_list = key.legal.starts_with("a list");
        for empty in if is_list { ["", "  ", ",", " , "].as_slice() } else { &["", "  "] } {
            let faults = parse(&name, empty).expect_err(&full);
            assert_eq!(faults.faults.len(), 1, "{faults}");
            let says = faults.to_string();
            assert!(says.starts_with(&format!("environment variable {name}: {full}: ")), "{says}");
            if empty.is_empty() {
                assert!(says.contains("the variable is empty: unset it"), "{says}");
            }
        }
    }
    // An empty list is written.
    let lists = config::keys().iter().filter(|key| key.legal.starts_with("a list")).count();
    assert_eq!(lists, 9, "ports of four sections, servers, two lists of proxies, exempt addresses, nodes");
    let none = "SAMETIME_MUX__HTTP_TUNNELED_CLIENT_CONNECTIONS__PORTS";
    assert_eq!(parse(none, "[]").unwrap().ingress.listeners.len(), 2);
    let says = parse("SAMETIME_MUX__CLIENT_CONNECTIONS__PORTS", "").unwrap_err().to_string();
    assert!(says.contains("[] for an empty list"), "{says}");
}

/// All TOML files in a folder and the folders in it.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_shipped_files_are_legal() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let databases: Vec<_> =
        files(&root.join("config")).into_iter().filter(|path| !path.parent().unwrap().ends_with("load")).collect();
    assert!(!databases.is_empty(), "the scan found nothing");
    for path in databases {
        config::parse(&fs::read_to_string(&path).unwrap(), &path, std::iter::empty()).unwrap_or_else(|f| panic!("{f}"));
    }
}

#[test]
fn the_first_configuration_file_has_every_default_and_explains_every_key() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/stconfig.toml");
    let text = fs::read_to_string(&file).unwrap();
    let shipped = config::parse(&text, &file, std::iter::empty()).unwrap();
    let mut defaults = config::parse("[community]\nservers = [\"sandbox\"]\n", &file, std::iter::empty()).unwrap();
    defaults.form = shipped.form.clone();
    assert_eq!(shipped, defaults);
    let (mut section, mut explained, mut commented) = (String::new(), BTreeSet::new(), false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.split(']').next().unwrap().to_owned();
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| commented && !line.starts_with('#')) {
            explained.insert(format!("{section}.{name}"));
        }
        commented = line.starts_with('#');
    }
    let all: BTreeSet<String> = config::keys().iter().map(|key| format!("{}.{}", key.section, key.name)).collect();
    assert_eq!(explained, all);
}

#[test]
fn the_documents_name_every_key() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    for key in config::keys() {
        let row = format!("| `{}.{}` |", key.section, key.name);
        assert!(table.contains(&row), "docs/configuration.md has no row {row}");
    }
}
