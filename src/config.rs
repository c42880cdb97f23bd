//! The configuration database: a TOML file whose sections are those of the Sametime configuration database. An
//! environment variable overrides a key of the file.
//!
//! All errors are found in one pass. Each has the file, the line, the key, what is wrong, and what is legal.
//!
//! - `schema` declares every key, one file for each group of sections, and builds the settings of the rooms below.
//! - `section_reader` reads the keys of one section by their types.
//! - `reader` finds a key in the file or in the environment, converts it, and collects the errors.
//! - `legal` has the checks of values. `own_targets` finds a server that is this program itself.
//! - `ceiling` computes the maximum memory that settings allow.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use crate::{admin::AdminSettings, cluster, community, ingress, log::LogSettings, mux};

mod ceiling;
mod legal;
mod own_targets;
mod reader;
pub(crate) mod schema;
mod section_reader;

pub use ceiling::Ceiling;
use own_targets::Names;
use reader::KeyReader;

/// The prefix of the environment variables that override keys: `SAMETIME_MUX__SECTION__KEY`.
pub const ENV_PREFIX: &str = "SAMETIME_MUX__";

/// The form of the file that settings were read from. A reload compares it with the form of the file in force, to notice
/// a file that is cut off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileForm {
    /// The sections, with the lines of their headers, counted from 1.
    pub sections: BTreeMap<String, usize>,
    /// Whether the last line has a line end. An empty file has no last line.
    pub has_last_line_end: bool,
}

/// Checked settings, grouped by the room that they configure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file that they were read from.
    pub file: PathBuf,
    /// The form of this file.
    pub form: FileForm,
    /// Listeners, TLS, HTTP and the tunnel.
    pub ingress: ingress::IngressSettings,
    /// The core: limits and timeouts of clients.
    pub mux: mux::MuxSettings,
    /// The Community servers and the links to them.
    pub community: community::CommunitySettings,
    /// The cluster; `None`: this multiplexer is alone.
    pub cluster: Option<cluster::ClusterSettings>,
    /// The admin endpoint.
    pub admin: AdminSettings,
    /// The log.
    pub log: LogSettings,
}

/// Where an error is. The order is the order of the report: lines first, then the file, then variables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigPlace {
    /// A line of the file, counted from 1.
    Line(usize),
    /// The file as a whole.
    File,
    /// An environment variable, by its name.
    Variable(String),
}

/// One error of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// Where it is.
    pub place: ConfigPlace,
    /// `section.key`; empty if the error does not belong to one key.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What is legal; empty if there is nothing to say.
    pub legal: String,
}

/// All errors of a configuration, ordered by their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file that was read.
    pub file: PathBuf,
    /// The errors; never empty.
    pub faults: Vec<ConfigError>,
}

/// One line for each error: `FILE:LINE: key: what is wrong (what is legal)`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ConfigError { place, key, what, legal }) in self.faults.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match place {
                ConfigPlace::Line(line) => write!(f, "{}:{line}: ", self.file.display())?,
                ConfigPlace::File => write!(f, "{}: ", self.file.display())?,
                ConfigPlace::Variable(name) => write!(f, "environment variable {name}: ")?,
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

/// A key of the configuration database, for tests of the documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigKey {
    /// The section that it is in.
    pub section: &'static str,
    /// Its name in the section.
    pub name: &'static str,
    /// What is legal, as an error says it.
    pub legal: &'static str,
}

/// Reads `file`, and the environment variables of this process that override it.
///
/// # Errors
/// All errors of the configuration, or the one that the file can't be read.
pub fn load(file: &Path) -> Result<Settings, ConfigErrors> {
    load_with(file, Names::Compared)
}

/// As [`load`], for a check: names are looked up, to find a Community server, or a web back end, that is this program
/// itself. This takes some seconds where a name server does not answer.
///
/// # Errors
/// As [`load`].
pub fn load_and_look_up(file: &Path) -> Result<Settings, ConfigErrors> {
    load_with(file, Names::LookedUp)
}

fn load_with(file: &Path, names: Names) -> Result<Settings, ConfigErrors> {
    let text = std::fs::read_to_string(file).map_err(|error| ConfigErrors {
        file: file.to_owned(),
        faults: vec![ConfigError {
            place: ConfigPlace::File,
            key: String::new(),
            what: format!("the configuration database can't be read: {error}"),
            legal: "name another with --config FILE or SAMETIME_MUX_CONFIG".to_owned(),
        }],
    })?;
    // A variable that is not Unicode is converted with replacement characters, so that its value is reported as wrong
    // and not ignored.
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    parse_with(&text, file, std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))), names)
}

/// Reads `text`, the content of `file`, and the variables of `environment` that override it.
///
/// # Errors
/// All errors of the configuration.
pub fn parse(
    text: &str,
    file: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Settings, ConfigErrors> {
    parse_with(text, file, environment, Names::Compared)
}

fn parse_with(
    text: &str,
    file: &Path,
    environment: impl Iterator<Item = (String, String)>,
    names: Names,
) -> Result<Settings, ConfigErrors> {
    let variables: BTreeMap<String, String> = environment.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    let mut reader = KeyReader::new(text, variables);
    let settings = schema::settings(&mut reader, file);
    own_targets::report(&mut reader, &settings, names);
    let faults = reader.finish();
    if faults.is_empty() { Ok(settings) } else { Err(ConfigErrors { file: file.to_owned(), faults }) }
}

/// Every key, in the order of the shipped file.
pub fn keys() -> Vec<ConfigKey> {
    let mut reader = KeyReader::new("", BTreeMap::new());
    let _ = schema::settings(&mut reader, Path::new(""));
    reader.keys().to_vec()
}
