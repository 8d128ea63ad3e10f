//! The check that whatever a built file asks for at run time is built, too.
//!
//! Kconfig knows what a file needs to be compiled and linked. It does not know that a log rule of nft is refused without a
//! logger, or that dm-crypt opens no disk without a cipher: such modules are asked for by name, at run time. The names are
//! in the sources; [`Backends`] reads them there.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use miette::Diagnostic;
use thiserror::Error;
use walkdir::WalkDir;

use crate::{
    DotConfig, Expr, Requests, Tristate,
    asks::{self, Facts, Prefixes},
    objects::{Object, both, objects},
};

/// What files ask for and do without, or a file that does without whatever it asks for, with the reason. Each is one of two kinds: the file has a provider of its own, or asks
/// only if a user wants something that is a feature of its own.
const OPTIONAL: [(&str, &str); 27] = [
    ("crypto/rng.c", "the generator of files that select CRYPTO_RNG_DEFAULT"),
    ("crypto/testmgr.c", "tests the algorithms that are there"),
    ("8021q", "VLANs by ioctl(2): the answer is that there are none"),
    ("bpf_preload", "programs that list maps in bpffs, of interest to developers"),
    ("bridge", "bridges by ioctl(2): the answer is that there are none"),
    ("crypto-%s-all", "a second name, for drivers of several algorithms"),
    ("cryptomgr", "makes algorithms of templates, which select it"),
    ("dm-exstore-%s", "dm-snapshot has both stores"),
    ("dm-log-%s", "dm-log has the logs that LVM uses"),
    ("ip_vs_pe_%s", "persistence by a protocol's data, of SIP only"),
    ("md-cluster", "arrays that several machines share"),
    ("net-pf-%d-proto-%d", "sockets of any protocol that a program names"),
    ("net-pf-%d-proto-%d-type-%d", "the same"),
    ("net-pf-%d-proto-%d-type-%d-%d", "ss(8) shows sockets of protocols that are there"),
    ("net-pf-%d-proto-%d-family-%s", "generic netlink of any family that a program names"),
    ("nf-flowtable-%u", "flowtables are an entry of their own"),
    ("nf_conntrack_bridge", "connections in bridge tables are an entry of their own"),
    ("nfct-helper-%s", "helpers are entries of their own"),
    ("net/netfilter/nf_conntrack_standalone.c", "logs invalid packets once a sysctl asks for it"),
    (
        "nft-chain-%u-%.*s",
        "chains of type filter, which nf_tables has, and others that are entries of their own",
    ),
    ("nft-expr-%u-%.*s", "expressions of one family; those of all are asked for as nft-expr-%.*s"),
    ("rpc-auth-gss-%s", "Kerberos"),
    ("rtnl-link-%s", "links of any kind that a program names"),
    ("svc%s", "transports other than TCP and UDP: RDMA"),
    ("tcp-ulp-%s", "TLS in the kernel"),
    ("xfrm-iptfs", "IPsec's aggregation of packets"),
    ("xfrm-offload-%d-%d", "network adapters that do IPsec"),
];

/// Most providers that a message names.
const OFFERS: usize = 6;

/// Something that is asked for at run time and that no built file offers.
#[derive(Clone, Debug, PartialEq, Eq, Error, Diagnostic)]
#[error("{asker} asks for {name} at run time, and nothing that is built offers it: {}", offers(.offered_by))]
pub struct MissingBackend {
    /// The file, or the entry of the fragments.
    pub asker: String,
    /// The name, or a format of names.
    pub name: String,
    /// Conditions under which something would, the simplest first: at most six.
    pub offered_by: Vec<String>,
}

fn offers(by: &[String]) -> String {
    match by {
        [] => "nothing in this kernel does".to_owned(),
        [one] => format!("{one} would"),
        _ => format!("one of {} would", by.join(", ")),
    }
}

/// The sources of a tree, read as far as they are asked about.
#[derive(Debug)]
pub struct Backends {
    tree: PathBuf,
    objects: Vec<Object>,
    prefixes: Prefixes,
    read: RefCell<HashMap<PathBuf, Rc<Facts>>>,
}

impl Backends {
    /// Reads the Makefiles and the macros of a kernel source tree.
    pub fn load(tree: &Path) -> Self {
        let mut prefixes = Prefixes::new();
        let headers =
            ["include", "net", "fs", "crypto"].into_iter().flat_map(|dir| WalkDir::new(tree.join(dir)));
        for entry in headers.filter_map(Result::ok) {
            if entry.path().extension().is_some_and(|e| e == "h")
                && let Ok(text) = fs::read_to_string(entry.path())
                && text.contains("MODULE_ALIAS_")
            {
                asks::prefixes(&text, &mut prefixes);
            }
        }
        Self { tree: tree.to_owned(), objects: objects(tree), prefixes, read: RefCell::default() }
    }

    /// What a configuration's files, and the entries that it was made from, ask for in vain.
    pub fn missing(&self, config: &DotConfig, requests: &Requests) -> Vec<MissingBackend> {
        let built = |condition: &Expr| condition.value(config) != Some(Tristate::No);
        let (mut offers, mut asked) = (HashSet::new(), BTreeSet::new());
        for object in self.objects.iter().filter(|object| built(&object.condition)) {
            offers.insert(object.module.clone());
            let facts = self.facts(&object.source);
            offers.extend(facts.offers.iter().filter(|(_, c)| built(c)).map(|(name, _)| plain(name)));
            let asks = facts.asks.iter().filter(|(name, c)| built(c) && !is_optional(name, &object.source));
            asked.extend(asks.map(|(name, _)| (name.clone(), describe(object))));
        }
        for (symbol, request) in requests.iter() {
            let needs = request.origins.iter().flat_map(|origin| &origin.needs);
            asked.extend(needs.map(|name| (name.clone(), format!("{symbol} (its entry)"))));
        }
        asked
            .into_iter()
            .filter(|(name, _)| !is_offered(name, &offers))
            .map(|(name, asker)| MissingBackend { asker, offered_by: self.offering(&name), name })
            .collect()
    }

    /// The conditions under which something offers a name, or a part of it. Reads the whole tree.
    fn offering(&self, name: &str) -> Vec<String> {
        let wanted = parts(name);
        let mut conditions = BTreeSet::new();
        for object in &self.objects {
            let facts = self.facts(&object.source);
            let own = (object.module.clone(), crate::objects::always());
            for (offer, condition) in facts.offers.iter().chain([&own]) {
                if wanted.iter().any(|format| fits(format, &plain(offer))) {
                    conditions.insert(both(&object.condition, condition).to_string());
                }
            }
        }
        let mut conditions: Vec<_> = conditions.into_iter().collect();
        // Drivers of devices have longer ones.
        conditions.sort_by_key(String::len);
        conditions.truncate(OFFERS);
        conditions
    }

    /// A source file's facts. One that cannot be read has none: the kernel's make says so better.
    fn facts(&self, source: &Path) -> Rc<Facts> {
        if let Some(known) = self.read.borrow().get(source) {
            return known.clone();
        }
        let text = fs::read(self.tree.join(source)).unwrap_or_default();
        let facts = Rc::new(asks::facts(&String::from_utf8_lossy(&text), &self.prefixes));
        self.read.borrow_mut().insert(source.to_owned(), facts.clone());
        facts
    }
}

fn describe(object: &Object) -> String {
    format!("{} ({})", object.source.display(), object.condition)
}

fn is_optional(name: &str, source: &Path) -> bool {
    OPTIONAL.iter().any(|(optional, _)| *optional == name || Path::new(optional) == source)
}

/// A name as modprobe compares it.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// A name as it is asked for, and the parts that the crypto API can make it of.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![plain(name)];
    if let Some(algorithm) = name.strip_prefix("crypto-").filter(|rest| rest.contains('(')) {
        let words = algorithm.split(['(', ')', ',']).filter(|word| !word.is_empty());
        parts.extend(words.map(|word| plain(&format!("crypto-{word}"))));
    }
    parts
}

fn is_offered(name: &str, offers: &HashSet<String>) -> bool {
    let wanted = parts(name);
    let offered = |format: &String| offers.contains(format) || offers.iter().any(|offer| fits(format, offer));
    offered(&wanted[0]) || wanted.len() > 1 && wanted[1..].iter().all(offered)
}

/// Whether a name is one that printf makes of a format.
fn fits(format: &str, name: &str) -> bool {
    let Some((before, rest)) = format.split_once('%') else { return format == name };
    let Some(tail) = name.strip_prefix(before) else { return false };
    let length = rest.find(|c: char| c.is_ascii_alphabetic()).map_or(rest.len(), |index| index + 1);
    let after = &rest[length..];
    (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| fits(after, &tail[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fragments, Selection, Value};

    /// A tree with nft's log rules, dm-crypt, and what they ask for.
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("Kbuild", "obj-y += net/ crypto/ md/\n"),
            ("include/crypto.h", "#define MODULE_ALIAS_CRYPTO(name) MODULE_INFO(alias, \"crypto-\" name)\n"),
            (
                "net/Makefile",
                "obj-$(CONFIG_NFT_LOG) += nft_log.o\nobj-$(CONFIG_NF_LOG_SYSLOG) += nf_log_syslog.o\n\
                 obj-$(CONFIG_IP_SET) += ip_set.o\nobj-$(CONFIG_IP_SET_HASH_IP) += ip_set_hash_ip.o\n",
            ),
            ("net/nft_log.c", "nft_request_module(net, \"%s\", \"nf_log_syslog\");\n"),
            ("net/nf_log_syslog.c", ""),
            ("net/ip_set.c", "request_module(\"ip_set_%s\", name);\n"),
            ("net/ip_set_hash_ip.c", "MODULE_ALIAS(\"ip_set_hash:ip\");\n"),
            ("md/Makefile", "obj-$(CONFIG_DM_CRYPT) += dm-crypt.o\n"),
            ("md/dm-crypt.c", "tfm = crypto_alloc_skcipher(mode, 0, 0);\n"),
            (
                "crypto/Makefile",
                "obj-$(CONFIG_CRYPTO_CBC) += cbc.o\nobj-$(CONFIG_CRYPTO_XTS) += xts.o\nobj-$(CONFIG_CRYPTO_AES) += aes.o\n",
            ),
            (
                "crypto/cbc.c",
                "skcipher_alloc_instance_simple(t, tb);\nskcipher_register_instance(t, i);\nMODULE_ALIAS_CRYPTO(\"cbc\");\n",
            ),
            ("crypto/xts.c", "skcipher_register_instance(t, i);\nMODULE_ALIAS_CRYPTO(\"xts\");\n"),
            ("crypto/aes.c", ".cra_name = \"aes\", .cra_flags = CRYPTO_ALG_TYPE_CIPHER,\n"),
        ] {
            fs::create_dir_all(tree.path().join(name).parent().unwrap()).unwrap();
            fs::write(tree.path().join(name), text).unwrap();
        }
        tree
    }

    /// What is missing in a kernel with these symbols, one of which has an entry that needs XTS.
    fn missing(symbols: &str) -> Vec<String> {
        let fragment = "workload = \"core\"\n[symbols]\n\
                        DM_CRYPT = { value = \"m\", needs = [\"crypto-xts(aes)\"], why = \"w\" }\n";
        let fragments = Fragments::parse(&[("core.toml", fragment)]).unwrap();
        let config: DotConfig = symbols.split(' ').map(|symbol| (symbol, Value::Module)).collect();
        let requests = if config.is_set("DM_CRYPT") {
            fragments.requests(&Selection::new("7.3"))
        } else {
            Requests::default()
        };
        let tree = tree();
        Backends::load(tree.path()).missing(&config, &requests).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_log_rule_needs_a_logger() {
        assert_eq!(
            missing("NFT_LOG"),
            [
                "net/nft_log.c (NFT_LOG) asks for nf_log_syslog at run time, and nothing that is built offers it: \
              NF_LOG_SYSLOG would"
            ]
        );
        assert!(missing("NFT_LOG NF_LOG_SYSLOG").is_empty());
    }

    #[test]
    fn sets_need_a_type_whichever() {
        assert!(missing("IP_SET")[0].contains("asks for ip_set_%s"));
        assert!(missing("IP_SET IP_SET_HASH_IP").is_empty());
    }

    #[test]
    fn encryption_needs_a_cipher_and_what_its_entry_says() {
        let without_cipher = missing("DM_CRYPT CRYPTO_CBC CRYPTO_XTS").join("\n");
        assert!(
            without_cipher.contains("crypto/cbc.c (CRYPTO_CBC) asks for a block cipher"),
            "{without_cipher}"
        );
        assert!(without_cipher.contains("CRYPTO_AES would"), "{without_cipher}");
        let without_xts = missing("DM_CRYPT CRYPTO_CBC CRYPTO_AES");
        assert_eq!(without_xts.len(), 1, "{without_xts:?}");
        assert!(
            without_xts[0].starts_with("DM_CRYPT (its entry) asks for crypto-xts(aes)"),
            "{without_xts:?}"
        );
        assert!(missing("DM_CRYPT CRYPTO_CBC CRYPTO_AES CRYPTO_XTS").is_empty());
    }

    #[test]
    fn formats_stand_for_names() {
        assert!(fits("md_level_%d", "md_level_10") && fits("nft_expr_%.*s", "nft_expr_ct"));
        assert!(fits("net_pf_%d_proto_%d", "net_pf_16_proto_9"));
        assert!(!fits("md_level_%d", "raid1") && !fits("nf_log", "nf_log_syslog"));
    }
}
