//! The configuration database: a TOML file whose sections are those of the Sametime
//! configuration database, and environment variables on top.
//!
//! Every fault is found in one go and says file, line, key, what is wrong and what is legal.
//! `reader` finds and converts single keys, `schema` names them all and makes the settings
//! that the floors below have.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use crate::{admin, community, ingress, log::LogSettings, mux};

mod ceiling;
mod legal;
mod reader;
mod schema;

pub use ceiling::Ceiling;

/// What every environment variable of a key begins with.
pub const ENV_PREFIX: &str = "SAMETIME_MUX__";

/// Checked settings, for each floor its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file that they were read from.
    pub file: PathBuf,
    /// The ways in.
    pub ingress: ingress::IngressSettings,
    /// The core.
    pub mux: mux::Settings,
    /// The links.
    pub community: community::Settings,
    /// The admin endpoint.
    pub admin: admin::Settings,
    /// The log.
    pub log: LogSettings,
}

/// Where a fault stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line(usize),
    /// The file as a whole.
    File,
    /// An environment variable.
    Variable(String),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// `section.key`; empty where it is no single key's.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What is legal.
    pub legal: String,
}

/// Everything that is wrong, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub faults: Vec<ConfigError>,
}

/// One line for each fault: `FILE:LINE: key: what is wrong (what is legal)`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ConfigError { place, key, what, legal }) in self.faults.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match place {
                Place::Line(line) => write!(f, "{}:{line}: ", self.file.display())?,
                Place::File => write!(f, "{}: ", self.file.display())?,
                Place::Variable(name) => write!(f, "environment variable {name}: ")?,
            }
            if !key.is_empty() {
                write!(f, "{key}: ")?;
            }
            write!(f, "{what}")?;
            if !legal.is_empty() {
                write!(f, " ({legal})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A key, for documents and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What is legal.
    pub legal: &'static str,
}

/// Reads `file`, with this process's environment on top.
///
/// # Errors
/// Every fault; one when the file can't be read.
pub fn load(file: &Path) -> Result<Settings, ConfigErrors> {
    let text = std::fs::read_to_string(file).map_err(|error| ConfigErrors {
        file: file.to_owned(),
        faults: vec![ConfigError {
            place: Place::File,
            key: String::new(),
            what: format!("the configuration database can't be read: {error}"),
            legal: "name another with --config FILE or SAMETIME_MUX_CONFIG".to_owned(),
        }],
    })?;
    // A value that is no Unicode is seen all the same, and found wrong.
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    parse(&text, file, std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))))
}

/// Reads `text`, which came from `file`, with `environment` on top.
///
/// # Errors
/// Every fault.
pub fn parse(
    text: &str,
    file: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Settings, ConfigErrors> {
    let variables: BTreeMap<String, String> = environment.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    let mut reader = reader::Reader::new(text, variables);
    let settings = schema::settings(&mut reader, file);
    let faults = reader.finish();
    if faults.is_empty() { Ok(settings) } else { Err(ConfigErrors { file: file.to_owned(), faults }) }
}

/// Every key that there is, in the file's order.
pub fn keys() -> Vec<Key> {
    let mut reader = reader::Reader::new("", BTreeMap::new());
    let _ = schema::settings(&mut reader, Path::new(""));
    reader.keys().to_vec()
}
