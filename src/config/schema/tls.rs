//! `[tls]`.

use std::path::PathBuf;

use crate::{
    config::{reader::KeyReader, section_reader::SectionReader},
    ingress::{ClientCertificates, TlsSettings},
};

pub(super) fn read(reader: &mut KeyReader<'_>) -> TlsSettings {
    let mut section = SectionReader::new(reader, "tls");
    let certificate = pem_file(&mut section, "certificate", "certs/server.pem");
    let private_key = pem_file(&mut section, "private_key", "certs/server.key");
    let legal = "\"off\", \"optional\" or \"required\"";
    let client_certificates = section.value("client_certificates", ClientCertificates::Off, legal);
    let legal = "a PEM file with the authorities that sign clients' certificates; \"\" where none are asked for";
    let client_ca = PathBuf::from(section.text("client_ca", "", legal));
    if client_certificates != ClientCertificates::Off && client_ca.as_os_str().is_empty() {
        section.conflict("client_ca", "tls.client_certificates is not off: there must be a file");
    }
    TlsSettings { certificate, private_key, client_certificates, client_ca, trunk_client_ca: PathBuf::new() }
}

fn pem_file(section: &mut SectionReader<'_, '_>, name: &'static str, default: &str) -> PathBuf {
    section.key(name, default.to_owned(), "a PEM file", |text: String| {
        if text.trim().is_empty() { Err(format!("{text:?} is no file")) } else { Ok(PathBuf::from(text)) }
    })
}
