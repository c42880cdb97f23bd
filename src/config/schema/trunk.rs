//! `[trunk]`, `[trunk_listener]`. The trunk is not in this version: its keys are checked, but nothing uses their
//! values, and a listener for it is an error.

use crate::config::{legal, reader::KeyReader, section_reader::SectionReader};

pub(super) fn read(reader: &mut KeyReader<'_>) {
    let mut section = SectionReader::new(reader, "trunk");
    section.number::<u32>("connections", 2, "1 to 64", 1..=64);
    section.flag("tls", true);
    section.text("certificate_authority", "", "a file, or \"\" for the system's roots");

    let mut section = SectionReader::new(reader, "trunk_listener");
    let legal = "an address or a name of this machine, or \"\" for every address";
    section.key("host_name", String::new(), legal, legal::host);
    if !section.key("ports", vec![], "[]", legal::ports).is_empty() {
        section.conflict("ports", "the trunk is not in this version");
    }
    let target = "127.0.0.1:1533".to_owned();
    section.key("target", target, "\"host:port\"", |text: String| legal::host_and_port(&text).map(|_| ()));
}
