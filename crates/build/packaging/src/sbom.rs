//! Bills of materials, in CycloneDX 1.5.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand, PackageId};
use cyclonedx_bom::{
    external_models::{normalized_string::NormalizedString, spdx::SpdxExpression, uri::Purl},
    models::{
        bom::{Bom, UrnUuid},
        component::{Classification, Component, Components, Scope},
        dependency::{Dependencies, Dependency},
        hash::{Hash, HashAlgorithm, HashValue, Hashes},
        license::{LicenseChoice, Licenses},
        metadata::Metadata,
        property::{Properties, Property},
    },
};
use kernel_builder::Manifest;
use sha2::{Digest, Sha256};
use support::run;

use crate::{
    error::{Error, Result},
    lock::Lock,
};

/// The platform that programs are built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The bill of materials of a program of the workspace: crates that are linked into it or make its code (procedural
/// macros).
pub(crate) fn of_package(checkout: &Path, package: &str) -> Result<Vec<u8>> {
    let metadata = MetadataCommand::new()
        .manifest_path(checkout.join("Cargo.toml"))
        .features(CargoOpt::SomeFeatures(Vec::new()))
        .other_options(vec!["--locked".to_owned(), "--filter-platform".to_owned(), TARGET.to_owned()])
        .exec()?;
    let checksums = checksums(checkout)?;
    let linked = linked(checkout, package)?;
    let malformed = |problem: String| Error::Malformed { what: checkout.display().to_string(), problem };
    let packages: BTreeMap<&PackageId, _> =
        metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let resolve = metadata.resolve.as_ref().ok_or_else(|| malformed("nothing is resolved".to_owned()))?;
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let root = metadata
        .workspace_packages()
        .into_iter()
        .find(|member| member.name.as_str() == package)
        .ok_or_else(|| malformed(format!("there is no package {package}")))?;

    let reference = |id: &PackageId| {
        packages.get(id).map_or_else(String::new, |p| format!("pkg:cargo/{}@{}", p.name, p.version))
    };
    let is_linked = |id: &PackageId| {
        packages.get(id).is_some_and(|p| linked.contains(&(p.name.to_string(), p.version.to_string())))
    };
    let mut seen = BTreeSet::from([&root.id]);
    let mut todo = vec![&root.id];
    let mut edges = BTreeMap::new();
    while let Some(id) = todo.pop() {
        let mut needs = BTreeSet::new();
        let dependencies = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        for dependency in dependencies.filter(|dependency| is_linked(&dependency.pkg)) {
            if dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal) {
                needs.insert(reference(&dependency.pkg));
                if seen.insert(&dependency.pkg) {
                    todo.push(&dependency.pkg);
                }
            }
        }
        edges.insert(reference(id), needs);
    }

    let component = |id: &PackageId, class: Classification| {
        let package = packages[id];
        let version = package.version.to_string();
        let mut component = Component::new(class, &package.name, &version, Some(reference(id)));
        component.purl = Purl::new("cargo", &package.name, &version).ok();
        component.licenses = package.license.as_deref().map(licence);
        component.hashes = checksums.get(&(package.name.to_string(), version)).map(|sum| hashes(sum));
        if package.targets.iter().any(cargo_metadata::Target::is_proc_macro) {
            component.scope = Some(Scope::Excluded);
        }
        component
    };
    let mut libraries: Vec<_> =
        seen.iter().filter(|id| **id != &root.id).map(|id| component(id, Classification::Library)).collect();
    libraries.sort_by(|a, b| a.bom_ref.cmp(&b.bom_ref));
    let dependencies = edges
        .into_iter()
        .map(|(from, to)| Dependency { dependency_ref: from, dependencies: to.into_iter().collect() })
        .collect();
    output(component(&root.id, Classification::Application), libraries, dependencies, Vec::new())
}

/// The hashes in Cargo.lock, by name and version: cargo's metadata do not contain them.
fn checksums(checkout: &Path) -> Result<BTreeMap<(String, String), String>> {
    let packages = Lock::read(checkout)?.package.into_iter();
    Ok(packages.filter_map(|package| Some(((package.name, package.version), package.checksum?))).collect())
}

/// Names and versions of the crates that a package is built of by itself. cargo's metadata unite the features that all
/// packages of the workspace ask for.
fn linked(checkout: &Path, package: &str) -> Result<BTreeSet<(String, String)>> {
    let mut cargo = run::command("cargo");
    cargo
        .args(["tree", "--locked", "--package", package, "--edges", "normal", "--target", TARGET])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(checkout);
    // `name v1.2.3 (path)`
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    };
    Ok(run::stdout(&mut cargo)?.lines().filter_map(parse).collect())
}

/// The bill of materials of a kernel: its source, patches, drivers and outputs. The tools are properties.
pub(crate) fn of_kernel(manifest: &Manifest) -> Result<Vec<u8>> {
    let Manifest { release, source, .. } = manifest;
    let mut kernel =
        Component::new(Classification::OperatingSystem, "linux", release, Some(format!("linux@{release}")));
    kernel.licenses = Some(licence("GPL-2.0-only WITH Linux-syscall-note"));
    let file = |kind: &str, name: &str, sha256: &str| {
        let mut component =
            Component::new(Classification::File, name, release, Some(format!("{kind}:{name}")));
        component.hashes = Some(hashes(sha256));
        component
    };
    let mut archive = Component::new(
        Classification::OperatingSystem,
        &format!("linux source ({})", source.origin),
        &source.version,
        Some("source".to_owned()),
    );
    archive.hashes = Some(hashes(&source.sha256));
    archive.licenses = Some(licence("GPL-2.0-only WITH Linux-syscall-note"));
    let mut parts = vec![archive];
    parts.extend(manifest.patches.iter().map(|patch| file("patch", &patch.name, &patch.sha256)));
    parts.extend(manifest.overlay.iter().map(|piece| file("driver", &piece.name, &piece.sha256)));
    parts.push(file("configuration", "config", &manifest.config.sha256));
    let needs = parts.iter().filter_map(|part| part.bom_ref.clone()).collect();
    let made = manifest.files.iter().map(|(name, record)| file("made", name, &record.sha256));
    parts.extend(made.filter(|part| part.bom_ref.as_deref() != Some("made:config")));
    let dependencies = vec![Dependency { dependency_ref: format!("linux@{release}"), dependencies: needs }];
    let mut properties = vec![Property::new("vmmlinux:inputs", &manifest.inputs)];
    let tools = manifest.toolchain.iter();
    properties.extend(tools.map(|(tool, version)| Property::new(format!("vmmlinux:tool:{tool}"), version)));
    output(kernel, parts, dependencies, properties)
}

fn licence(expression: &str) -> Licenses {
    // Old crates have a slash for "or".
    let expression = expression.replace('/', " OR ");
    Licenses(vec![match SpdxExpression::parse_lax(expression.clone()) {
        Ok(expression) => LicenseChoice::Expression(expression),
        Err(_) => LicenseChoice::license(&expression),
    }])
}

fn hashes(sha256: &str) -> Hashes {
    Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(sha256.to_owned()) }])
}

/// The text of a bill of materials. Its serial number is a hash of its content.
fn output(
    about: Component,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
    properties: Vec<Property>,
) -> Result<Vec<u8>> {
    let name = NormalizedString::to_string(&about.name);
    let mut bom = Bom {
        serial_number: None,
        metadata: Some(Metadata { component: Some(about), ..Metadata::default() }),
        components: Some(Components(components)),
        dependencies: Some(Dependencies(dependencies)),
        properties: (!properties.is_empty()).then_some(Properties(properties)),
        ..Bom::default()
    };
    let failed =
        |problem: String| Error::Malformed { what: format!("the bill of materials of {name}"), problem };
    let text = |bom: Bom| {
        let mut text = Vec::new();
        bom.output_as_json_v1_5(&mut text).map_err(|e| failed(e.to_string()))?;
        Ok::<_, Error>(text)
    };
    let hash = Sha256::digest(text(bom.clone())?);
    bom.serial_number = Some(UrnUuid::new(uuid(&hash)).map_err(|e| failed(format!("{e:?}")))?);
    text(bom)
}

/// A UUID out of a hash: version 8, RFC 9562.
fn uuid(hash: &[u8]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex[from..to].concat();
    format!("urn:uuid:{}-{}-{}-{}-{}", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16))
}
