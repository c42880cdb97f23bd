//! The certificate and its key on disk. A file of the wrong format is refused with the command that converts it. If
//! there are no files, a self-signed certificate is made.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use rustls_pemfile::Item;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::warn;

use super::TlsError;

/// How long a self-signed certificate is valid. The admin should replace it long before.
const SELF_SIGNED_FOR: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);

/// What a PEM file has to contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PemContent {
    Certificates,
    Key,
}

/// The items of a PEM file.
fn items(path: &Path, wanted: PemContent) -> Result<Vec<Item>, TlsError> {
    let bytes = fs::read(path).map_err(|error| TlsError(format!("{} can't be read: {error}", path.display())))?;
    let file = path.display();
    if let Some(der) = der(&bytes) {
        return Err(TlsError(match (der, wanted) {
            (Der::Pkcs12, PemContent::Certificates) => format!(
                "{file} is PKCS#12 (a .p12 or .pfx file), but PEM is needed: openssl pkcs12 -in {file} -nokeys -out {file}.pem"
            ),
            (Der::Pkcs12, PemContent::Key) => format!(
                "{file} is PKCS#12 (a .p12 or .pfx file), but PEM is needed: openssl pkcs12 -in {file} -nocerts -nodes -out {file}.key"
            ),
            (Der::Other, PemContent::Certificates) => {
                format!("{file} is DER, but PEM is needed: openssl x509 -inform der -in {file} -out {file}.pem")
            }
            (Der::Other, PemContent::Key) => {
                format!("{file} is DER, but PEM is needed: openssl pkey -inform der -in {file} -out {file}.pem")
            }
        }));
    }
    let contains = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if wanted == PemContent::Key && (contains(b"BEGIN ENCRYPTED PRIVATE KEY") || contains(b"Proc-Type: 4,ENCRYPTED")) {
        return Err(TlsError(format!(
            "the key in {file} is encrypted, and the server can't ask for its password: openssl pkey -in {file} -out {file}.open"
        )));
    }
    rustls_pemfile::read_all(&mut &bytes[..])
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError(format!("{file} is not a PEM file: {error}")))
}

/// A binary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Der {
    Pkcs12,
    Other,
}

/// Whether the file is binary: it begins with a SEQUENCE. PKCS#12 has the version 3 there (RFC 7292, section 4).
fn der(bytes: &[u8]) -> Option<Der> {
    let after = match bytes {
        [0x30, 0x80, ..] => 2,
        [0x30, long @ 0x81..=0x84, ..] => 2 + usize::from(long - 0x80),
        _ => return None,
    };
    Some(if bytes.get(after..)?.starts_with(&[2, 1, 3]) { Der::Pkcs12 } else { Der::Other })
}

/// The certificates in a file. There is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = items(path, PemContent::Certificates)?
        .into_iter()
        .filter_map(|item| if let Item::X509Certificate(certificate) = item { Some(certificate) } else { None })
        .collect();
    if chain.is_empty() {
        return Err(TlsError(format!("{} holds no certificate (-----BEGIN CERTIFICATE-----)", path.display())));
    }
    Ok(chain)
}

/// The first private key in a file.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = items(path, PemContent::Key)?.into_iter().find_map(|item| match item {
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    });
    key.ok_or_else(|| TlsError(format!("{} holds no private key (-----BEGIN PRIVATE KEY-----)", path.display())))
}

/// Makes a self-signed certificate for this machine's name, and writes it and its key.
pub(super) fn make(certificate: &Path, key: &Path) -> Result<(), TlsError> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if let Ok(host) = rustix::system::uname().nodename().to_str()
        && !host.is_empty()
        && !names.iter().any(|name| name == host)
    {
        names.insert(0, host.to_owned());
    }
    let made = rcgen::KeyPair::generate().and_then(|signing_key| {
        let mut parameters = rcgen::CertificateParams::new(names)?;
        let now = SystemTime::now();
        // One hour earlier, for clients whose clocks are late.
        parameters.not_before = (now - Duration::from_secs(3600)).into();
        parameters.not_after = (now + SELF_SIGNED_FOR).into();
        Ok((parameters.self_signed(&signing_key)?, signing_key))
    });
    let (signed, signing_key) =
        made.map_err(|error| TlsError(format!("no self-signed certificate could be made: {error}")))?;
    write_new(key, signing_key.serialize_pem().as_bytes(), 0o600)?;
    write_new(certificate, signed.pem().as_bytes(), 0o644)?;
    warn!(certificate = %certificate.display(), key = %key.display(),
        "there was no TLS certificate: a self-signed one was made; clients do not trust it until you replace both files and reload");
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let written = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
    };
    written().map_err(|error| {
        TlsError(format!(
            "{} is not there, and a self-signed certificate could not be written: {error}",
            path.display()
        ))
    })
}
