//! The real thing twice: two builds of one kernel, in different places, are the same bit for bit.

use std::{fs, os::unix::fs::symlink, path::Path};

use forge::{BoxedDiagnostic, Cache, Configuration, Forge, Options, Quiet, Request, find_kernel_dir};
use kconfig::{Fragments, Resolve, Selection, Workload};

struct Core {
    fragments: Fragments,
    selection: Selection,
}

impl Configuration for Core {
    fn identity(&self) -> Result<String, BoxedDiagnostic> {
        Ok(self.fragments.requests(&self.selection).to_config())
    }

    fn configure(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> Result<(), BoxedDiagnostic> {
        let job =
            Resolve { tree, build_dir, make_vars, fragments: &self.fragments, selection: &self.selection };
        kconfig::resolve(&job).map(|_| ()).map_err(|error| Box::new(error) as BoxedDiagnostic)
    }
}

#[test]
#[ignore = "compiles two kernels: CCACHE_DISABLE=1 cargo test -p forge --test reproducible -- --ignored"]
fn two_builds_of_a_kernel_are_the_same_bit_for_bit() {
    assert!(
        std::env::var_os("CCACHE_DISABLE").is_some(),
        "set CCACHE_DISABLE=1: the second build would be made of the first one's objects"
    );
    let kernel_dir = find_kernel_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let user = Cache::user().unwrap();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let build = |name: &str| {
        let root = place.path().join(name);
        fs::create_dir(&root).unwrap();
        // What was downloaded and installed is shared; trees and builds are each their own.
        for shared in ["downloads", "apt", "tools", "rust-src"] {
            fs::create_dir_all(user.root().join(shared)).unwrap();
            symlink(user.root().join(shared), root.join(shared)).unwrap();
        }
        let forge = Forge::new(Options::new(&kernel_dir), Cache::at(&root), Box::new(Quiet)).unwrap();
        let series = forge.series().default.clone();
        let selection = Selection { workloads: [Workload::Core].into(), ..Selection::new(&series) };
        let core = Core { fragments: Fragments::load(&kernel_dir.join("config")).unwrap(), selection };
        let built = forge
            .build(&Request {
                series: &series,
                name: "core",
                out: &root.join("out"),
                tree: None,
                configuration: &core,
                jobs: None,
                package: None,
            })
            .unwrap();
        fs::read_to_string(built.dir.join("SHA256SUMS")).unwrap()
    };
    let (first, second) = (build("one"), build("another-place"));
    assert!(first.contains("bzImage"));
    assert_eq!(first, second);
}
