//! `[admin]`.

use std::path::PathBuf;

use crate::{
    admin::AdminSettings,
    config::{legal, reader::KeyReader, section_reader::SectionReader},
    ingress::ListenerSettings,
};

/// Reads the section. Its port may not be one of `listeners`.
pub(super) fn read(reader: &mut KeyReader<'_>, listeners: &[ListenerSettings]) -> AdminSettings {
    let mut section = SectionReader::new(reader, "admin");
    let default = "127.0.0.1:9533".to_owned();
    let listen = section.key("listen", default, "\"address:port\", or \"\" for off", legal::listen);
    let is_taken = |listener: &&ListenerSettings| {
        listen.is_some_and(|address| {
            address.port() == listener.port && legal::may_overlap(&address.ip().to_string(), &listener.host)
        })
    };
    if let Some(taken) = listeners.iter().find(is_taken) {
        section.conflict("listen", &format!("port {} stands in [{}], too", taken.port, taken.section));
    }
    let token_file = section.text("token_file", "", "a file with a token; \"\" for none, on loopback only");
    let token_file = (!token_file.is_empty()).then(|| PathBuf::from(token_file));
    if token_file.is_none() && listen.is_some_and(|address| !address.ip().is_loopback()) {
        section.conflict("token_file", "admin.listen is not on loopback: there must be a token");
    }
    AdminSettings { listen, token_file }
}
