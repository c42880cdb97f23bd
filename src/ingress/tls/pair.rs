//! The certificate and its key on disk. If there are no files, a self-signed certificate is made.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::KeyPair;
use rustix::io::Errno;
use tracing::warn;

use crate::net::pem::TlsError;

/// How long a self-signed certificate is valid. The admin should replace it long before.
const SELF_SIGNED_FOR: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);

/// The first line of a key that this program made. Readers of PEM skip what is in front of the first `-----BEGIN`
/// (RFC 7468, section 2).
const MADE_HERE: &str = "Made by sametime-mux for a self-signed certificate.\n";

/// Which files of a certificate and its key are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PairState {
    /// Neither file.
    Absent,
    /// Only a key, which this program made: the start that made it did not get further.
    KeyOfOurs,
    /// Both files, or one that only an admin can complete.
    Given,
}

/// Finds out which of the two files are there.
///
/// # Errors
/// A folder can't be searched. Then it is not known that a file is missing.
pub(super) fn state(certificate: &Path, key: &Path) -> Result<PairState, TlsError> {
    Ok(match (is_there(certificate)?, is_there(key)?) {
        (false, false) => PairState::Absent,
        (false, true) if fs::read(key).is_ok_and(|bytes| bytes.starts_with(MADE_HERE.as_bytes())) => {
            PairState::KeyOfOurs
        }
        _ => PairState::Given,
    })
}

/// Whether a file is there. A link is, also where it leads nowhere.
///
/// # Errors
/// As for [`state`].
pub(super) fn is_there(path: &Path) -> Result<bool, TlsError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(false),
        Err(error) => Err(TlsError(format!("{} can't be read: {error}", path.display()))),
    }
}

/// Makes the self-signed certificate of a first start and its key. Files that are there stay as they are.
///
/// ```text
///  Absent ── key written ──▶ KeyOfOurs ── certificate written ──▶ Given
/// ```
///
/// If a start ends in between, for whatever reason, the next start completes it. Two starts at the same time use the
/// file that was written first.
///
/// # Errors
/// A file can't be written.
pub(super) fn make_missing(certificate: &Path, key: &Path) -> Result<(), TlsError> {
    match state(certificate, key)? {
        PairState::Given => return Ok(()),
        PairState::KeyOfOurs => (),
        PairState::Absent if certificate == key => {
            return Err(TlsError(format!("{} is not there: put certificate and key in it", key.display())));
        }
        PairState::Absent => {
            let made = KeyPair::generate().map_err(|error| not_made(&error))?;
            write_new(key, &format!("{MADE_HERE}{}", made.serialize_pem()), 0o600)?;
        }
    }
    let pem = fs::read_to_string(key).map_err(|error| TlsError(format!("{} can't be read: {error}", key.display())))?;
    let signed = KeyPair::from_pem(&pem).and_then(|key| self_signed(&key)).map_err(|error| not_made(&error))?;
    write_new(certificate, &signed.pem(), 0o644)?;
    warn!(certificate = %certificate.display(), key = %key.display(),
        "there was no TLS certificate: a self-signed one was made; clients do not trust it until you replace both files and reload");
    Ok(())
}

fn not_made(error: &rcgen::Error) -> TlsError {
    TlsError(format!("no self-signed certificate could be made: {error}"))
}

/// A certificate for this machine's name and for loopback.
fn self_signed(key: &KeyPair) -> Result<rcgen::Certificate, rcgen::Error> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if let Ok(host) = rustix::system::uname().nodename().to_str()
        && !host.is_empty()
        && !names.iter().any(|name| name == host)
    {
        names.insert(0, host.to_owned());
    }
    let mut parameters = rcgen::CertificateParams::new(names)?;
    let now = SystemTime::now();
    // One hour earlier, for clients whose clocks are late.
    parameters.not_before = (now - Duration::from_secs(3600)).into();
    parameters.not_after = (now + SELF_SIGNED_FOR).into();
    parameters.self_signed(key)
}

/// Writes a file: whole, or not at all. If another start has written it meanwhile, it stays as it is.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let written = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        if let Err(failed) = file.persist_noclobber(path)
            && failed.error.raw_os_error() != Some(Errno::EXIST.raw_os_error())
        {
            return Err(failed.error);
        }
        // Not every file system can do that for a folder.
        let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    };
    written().map_err(|error: io::Error| {
        TlsError(format!(
            "{} is not there, and a self-signed certificate could not be written: {error}",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_the_two_files_is_recognized() {
        let folder = tempfile::tempdir().expect("folder");
        let [certificate, key] = ["server.pem", "server.key"].map(|name| folder.path().join(name));
        let is = |expected| assert_eq!(state(&certificate, &key).expect("readable"), expected);
        is(PairState::Absent);
        make_missing(&certificate, &key).expect("made");
        is(PairState::Given);
        fs::remove_file(&certificate).expect("removed");
        is(PairState::KeyOfOurs);
        fs::write(&key, "a key").expect("written");
        is(PairState::Given);
        fs::remove_file(&key).expect("removed");
        // A link that leads nowhere is an admin's.
        std::os::unix::fs::symlink("nowhere", &certificate).expect("a link");
        is(PairState::Given);
        assert!(state(&certificate, &certificate.join("in a file")).is_ok());
        fs::remove_file(&certificate).expect("removed");
        fs::write(&certificate, "").expect("written");
        assert!(state(&certificate.join("in a file"), &key).is_err(), "no folder");
    }

    #[test]
    fn one_file_for_both_is_not_made() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("both.pem");
        assert!(make_missing(&file, &file).is_err());
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0, "nothing is left");
    }

    #[test]
    fn starts_at_the_same_time_make_one_pair() {
        let folder = tempfile::tempdir().expect("folder");
        let [certificate, key] = ["server.pem", "server.key"].map(|name| folder.path().join(name));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| make_missing(&certificate, &key).expect("made"));
            }
        });
        let pem = fs::read_to_string(&key).expect("written");
        let key = KeyPair::from_pem(&pem).expect("a key");
        let chain = crate::net::pem::certificates(&certificate).expect("a certificate");
        let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
        assert_eq!(certificate.public_key().subject_public_key.data, key.public_key_raw(), "of one pair");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 2, "nothing else is left");
    }
}
