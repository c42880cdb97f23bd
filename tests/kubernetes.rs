//! The manifests of deploy/kubernetes: against the published schemas, against each other, and against the program.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use support::{has, peer::text, program::PROGRAM, skip};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes");

/// A program of the tools that tests/run installs from PyPI and npm; `None`: it is not there, which is reported.
fn tool(path: &str, package: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("SAMETIME_MUX_TEST_TOOLS").map(PathBuf::from);
    let found = tools.map(|tools| tools.join(path)).filter(|path| path.exists());
    if found.is_none() {
        skip(package, "tests/run could not install it");
    }
    found
}

/// What `tests/kubernetes/check.py` prints; `None`: it cannot run here.
fn manifests() -> Option<Value> {
    let python = tool("python/bin/python", "kubernetes-validate (PyPI)")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/check.py");
    let checked = Command::new(python).arg(script).arg(MANIFESTS).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    Some(serde_json::from_slice(&checked.stdout).unwrap())
}

#[test]
fn the_parts_of_the_manifests_fit_together_and_the_program_accepts_the_configuration() {
    let Some(manifests) = manifests() else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "a secret of tests alone").unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("tls.crt"), pair.cert.pem()).unwrap();
    fs::write(folder.path().join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
    let configuration = manifests["configuration"].as_str().unwrap();
    let here = folder.path().display().to_string();
    let configuration = configuration
        .replace("/etc/sametime-mux/tls", &here)
        .replace("/etc/sametime-mux/secrets/cluster-secret", &secret.display().to_string())
        .replace("/etc/sametime-mux/secrets/admin-token", &secret.display().to_string());
    assert!(!configuration.contains("/etc/"), "{configuration}");
    let file = folder.path().join("stconfig.toml");
    fs::write(&file, configuration + "node = \"sametime-mux-0\"\n").unwrap();
    let checked = Command::new(PROGRAM).args(["check", "--config"]).arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
}

#[test]
fn kubernetes_own_resources_are_of_the_published_form() {
    let Some(validate) = tool("python/bin/kubernetes-validate", "kubernetes-validate (PyPI)") else { return };
    let file = Path::new(MANIFESTS).join("sametime-mux.yaml");
    let checked = Command::new(validate).args(["--strict", "--no-warn"]).arg(file).output().unwrap();
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    assert_eq!(text(&checked.stdout).matches("passed").count(), 8, "{}", text(&checked.stdout));
}

#[test]
fn resources_of_other_projects_are_of_the_published_form() {
    let Some(packages) = tool("npm/node_modules/@kubernetes-models", "@kubernetes-models (npm)") else { return };
    if !has("node", "nodejs") {
        return;
    }
    let Some(manifests) = manifests() else { return };
    let of_others = |document: &&Value| {
        let version = document["apiVersion"].as_str().unwrap();
        version.starts_with("gateway.") || version.starts_with("monitoring.")
    };
    let resources: Vec<&Value> = manifests["documents"].as_array().unwrap().iter().filter(of_others).collect();
    assert_eq!(resources.len(), 7);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resources.json");
    let check = |resources: &Vec<Value>| {
        fs::write(&file, serde_json::to_string(resources).unwrap()).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/schemas.mjs");
        let npm = packages.parent().and_then(Path::parent).unwrap();
        Command::new("node").arg(script).arg(&file).arg(npm).output().unwrap()
    };
    let mut resources: Vec<Value> = resources.into_iter().cloned().collect();
    let checked = check(&resources);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    // The check itself: it finds a value of another type in each of them.
    for resource in &mut resources {
        resource["spec"] = Value::from("a text");
        assert!(!check(&vec![resource.clone()]).status.success(), "{resource}");
    }
}

/// The rules name metrics that the program has.
#[test]
fn alarms_name_metrics_that_exist() {
    let rules = fs::read_to_string(Path::new(MANIFESTS).join("monitoring.yaml")).unwrap();
    let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut metrics: Vec<&str> = words.filter(|word| word.starts_with("sametime_mux_")).collect();
    metrics.dedup();
    assert!(metrics.len() >= 5, "{metrics:?}");
    for metric in metrics {
        assert!(documented.contains(&format!("`{metric}`")), "{metric}");
    }
}
