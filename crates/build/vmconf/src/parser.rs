//! From tokens to a configuration. After an error reading goes on, in the same block where that is possible.

use std::{fs::File, io, path::Path, sync::Arc};

use crate::{
    finding::{Finding, Severity, relative_path},
    host_files::{HostFiles, read_limited},
    lexer::{Lexer, Macro, Macros, Token},
    model::{
        BootDevice, Config, DiskFormat, InstanceOption, Interface, Owner, Statement, Switch, SwitchOption,
        Vm, VmOption,
    },
    size::parse_size,
    source::{Source, Span, Spanned},
};

/// Levels of files that include each other.
const DEEPEST: usize = 16;
/// Files that a configuration may consist of, each inclusion counted.
const MOST_FILES: usize = 256;
/// Bytes that these files may have together.
const MOST_BYTES: usize = 4 << 20;
/// Errors after which a configuration is not read further.
const MOST_FINDINGS: usize = 1000;

/// Reads a file and what it includes; with `root`, includes are files below this directory. Fails only if the file
/// itself cannot be read; what is wrong in it is in [`Config::findings`]. Bytes that are not UTF-8 are replaced.
pub fn read(path: &Path, root: Option<&Path>) -> io::Result<Config> {
    let text = read_limited(File::open(path)?, MOST_BYTES as u64)?;
    let beside = path.parent().map(Path::to_owned).unwrap_or_default();
    let include = |name: &str| {
        // A copy of a configuration that is examined without its host has its files beside it.
        let file = match root {
            Some(root) => HostFiles::new(root).open(name),
            None => File::open(beside.join(name)),
        };
        read_limited(file?, MOST_BYTES as u64)
    };
    Ok(read_text(&path.display().to_string(), &text, &include))
}

/// Reads a text. `include` gives the text of an included file.
pub fn read_text(name: &str, text: &str, include: &dyn Fn(&str) -> io::Result<String>) -> Config {
    let mut reader = Reader {
        config: Config::default(),
        macros: Macros::new(),
        include,
        open: vec![name.to_owned()],
        bytes: 0,
        stopped: false,
    };
    reader.file(name, text, Span::default());
    if reader.config.findings.len() >= MOST_FINDINGS {
        reader.config.findings.push(Finding::error(
            reader.config.findings.last().map_or_else(Span::default, |last| last.at),
            format!("more than {MOST_FINDINGS} errors"),
            "not read further",
        ));
    }
    let unused = reader.macros.values.iter().filter(|(_, value)| !value.used);
    reader.config.findings.extend(unused.map(|(name, unused)| {
        let message = format!("the macro `{name}` is not used");
        Finding::new(Severity::Note, unused.at, message, "vmd warns of it, too")
    }));
    reader.config
}

struct Reader<'a> {
    config: Config,
    macros: Macros,
    include: &'a dyn Fn(&str) -> io::Result<String>,
    /// The names of the files that are being read, from the first one to the innermost.
    open: Vec<String>,
    /// Bytes of all files so far.
    bytes: usize,
    /// A limit is reached: nothing more is read.
    stopped: bool,
}

impl Reader<'_> {
    /// Reads a file that is included at `at`.
    fn file(&mut self, name: &str, text: &str, at: Span) {
        self.bytes += text.len();
        if self.bytes > MOST_BYTES || self.config.sources.len() == MOST_FILES {
            self.stopped = true;
            self.config.findings.push(
                Finding::error(at, "the configuration is too large", "not read further")
                    .help(format!("limits: {MOST_FILES} files, {} MiB", MOST_BYTES >> 20)),
            );
            return;
        }
        let source = self.config.sources.len();
        let text: Arc<str> = Arc::from(text);
        self.config.sources.push(Source::new(name, Arc::clone(&text)));
        Parser {
            lexer: Lexer::new(text, source),
            peeked: None,
            last: Span::default(),
            unclosed: false,
            reader: self,
        }
        .file();
    }
}

/// What was wrong is among the findings already.
struct Failed;

type Parsed<T> = Result<T, Failed>;

struct Parser<'a, 'b> {
    lexer: Lexer,
    peeked: Option<(Token, Span)>,
    /// Where the last token was that was taken.
    last: Span,
    /// A block ended because the next section begins.
    unclosed: bool,
    reader: &'a mut Reader<'b>,
}

impl Parser<'_, '_> {
    fn peek(&mut self) -> &Token {
        &self.peek_at().0
    }

    fn peek_at(&mut self) -> &(Token, Span) {
        if self.peeked.is_none() {
            let Reader { config, macros, stopped, .. } = &mut *self.reader;
            let stop = *stopped || config.findings.len() >= MOST_FINDINGS;
            self.peeked = Some(if stop {
                (Token::End, self.lexer.here())
            } else {
                self.lexer.next(macros, &mut config.findings)
            });
        }
        self.peeked.get_or_insert_with(|| (Token::End, Span::default()))
    }

    fn next(&mut self) -> (Token, Span) {
        let token = self.peek_at().clone();
        self.peeked = None;
        self.last = token.1;
        token
    }

    fn found(&mut self, finding: Finding) {
        self.reader.config.findings.push(finding);
    }

    /// Says that something else was expected than what comes next.
    fn unexpected<T>(&mut self, expected: &str) -> Parsed<T> {
        let (token, at) = self.peek_at().clone();
        // What makes no token has been complained about.
        if token != Token::Bad {
            self.found(Finding::error(
                at,
                format!("expected {expected}, found {}", token.describe()),
                format!("not {expected}"),
            ));
        }
        Err(Failed)
    }

    fn is(&mut self, keyword: &str) -> bool {
        matches!(self.peek(), Token::Keyword(word) if *word == keyword)
    }

    /// Takes the keyword if it is next.
    fn take(&mut self, keyword: &str) -> bool {
        let is = self.is(keyword);
        if is {
            self.next();
        }
        is
    }

    fn keyword(&mut self, keyword: &str) -> Parsed<()> {
        if self.take(keyword) { Ok(()) } else { self.unexpected(&format!("`{keyword}`")) }
    }

    fn sign(&mut self, sign: char) -> Parsed<Span> {
        if *self.peek() == Token::Sign(sign) {
            Ok(self.next().1)
        } else {
            self.unexpected(&format!("`{sign}`"))
        }
    }

    fn newlines(&mut self) -> bool {
        let mut any = false;
        while *self.peek() == Token::Newline {
            self.next();
            any = true;
        }
        any
    }

    /// One word or string.
    fn text(&mut self, what: &str) -> Parsed<Spanned<String>> {
        if !matches!(self.peek(), Token::Text(_)) {
            let help = match self.peek() {
                Token::Keyword(_) => Some("in quotes it is not a keyword"),
                Token::Sign('~') => {
                    Some("vmd does not expand `~`: write the path from the root, as in /home/…")
                }
                _ => None,
            };
            let failed = self.unexpected(what);
            if let (Some(help), Some(last)) = (help, self.reader.config.findings.last_mut()) {
                last.help = Some(help.to_owned());
            }
            return failed;
        }
        match self.next() {
            (Token::Text(text), at) => Ok(Spanned::new(text, at)),
            _ => Err(Failed),
        }
    }

    /// Words and strings that follow each other are one.
    fn texts(&mut self, what: &str) -> Parsed<Spanned<String>> {
        let mut first = self.text(what)?;
        while matches!(self.peek(), Token::Text(_)) {
            let more = self.text(what)?;
            first.value.push_str(&more.value);
            first.at = first.at.to(more.at);
        }
        Ok(first)
    }

    fn number(&mut self, what: &str) -> Parsed<Spanned<i64>> {
        match *self.peek() {
            Token::Number(number) => Ok(Spanned::new(number, self.next().1)),
            _ => self.unexpected(what),
        }
    }

    /// Drops what is left of the line, or of the block that it is in.
    fn skip_line(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.peek() {
                Token::End => return,
                Token::Newline | Token::Sign('}') if depth == 0 => return,
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                _ => {}
            }
            self.next();
        }
    }

    /// After an error in braces within a block: drops what is left of them.
    fn skip_braces(&mut self) {
        loop {
            self.skip_line();
            match self.next().0 {
                Token::Sign('}') | Token::End => return,
                _ if matches!(self.peek(), Token::Keyword("vm" | "switch" | "include")) => return,
                _ => {}
            }
        }
    }

    fn file(&mut self) {
        loop {
            let at = self.peek_at().1;
            match self.peek() {
                Token::End => return,
                Token::Newline => {
                    self.next();
                    continue;
                }
                _ => {}
            }
            let parsed = self.statement();
            let at = at.to(self.last);
            let unclosed = std::mem::take(&mut self.unclosed);
            let parsed = parsed.and_then(|statement| match self.peek() {
                Token::Newline | Token::End => Ok(statement),
                _ if unclosed => Ok(statement),
                _ => self.unexpected("the end of the line"),
            });
            match parsed {
                Ok(Some(statement)) => {
                    self.reader.config.statements.push(Spanned::new(statement, at));
                }
                Ok(None) => {}
                Err(Failed) => {
                    self.skip_line();
                    // A brace that closes nothing.
                    if *self.peek() == Token::Sign('}') {
                        self.next();
                    }
                }
            }
        }
    }

    fn statement(&mut self) -> Parsed<Option<Statement>> {
        match self.peek() {
            Token::Text(_) => self.set_macro().map(|()| None),
            Token::Keyword("include") => self.include().map(|()| None),
            Token::Keyword("local") => self.local().map(Some),
            Token::Keyword("socket") => {
                self.next();
                self.keyword("owner")?;
                Ok(Some(Statement::SocketOwner(self.owner()?)))
            }
            Token::Keyword("agentx") => self.agentx().map(Some),
            Token::Keyword("staggered") => {
                self.next();
                self.keyword("start")?;
                self.keyword("parallel")?;
                let parallel = self.number("how many VMs to start at a time")?.value;
                self.keyword("delay")?;
                let delay = self.number("a number of seconds")?.value;
                Ok(Some(Statement::StaggeredStart { parallel, delay }))
            }
            Token::Keyword("switch") => self.switch().map(|switch| Some(Statement::Switch(switch))),
            Token::Keyword("vm") => self.vm().map(|vm| Some(Statement::Vm(vm))),
            Token::Sign('}') => {
                let (_, at) = self.next();
                self.found(Finding::error(at, "a `}` closes nothing", "no block is open here"));
                Ok(None)
            }
            _ => self.unexpected("a section (`vm`, `switch`), a global setting, a macro or `include`"),
        }
    }

    fn set_macro(&mut self) -> Parsed<()> {
        let name = self.text("a macro's name")?;
        if *self.peek() != Token::Sign('=') {
            self.found(
                Finding::error(name.at, format!("`{}` begins nothing that vmd knows", name.value), "unknown").help(
                    "there are `vm`, `switch`, `local`, `socket owner`, `agentx`, `staggered start`, `include`, and \
                     macros, as in name = \"value\"",
                ),
            );
            return Err(Failed);
        }
        self.next();
        if let Token::Number(number) = *self.peek() {
            let at = self.peek_at().1;
            self.found(
                Finding::error(at, "a macro's value is a string", "vmd takes this for a number")
                    .help(format!("put it in quotes: {} = \"{number}\"", name.value)),
            );
            return Err(Failed);
        }
        let value = self.text("a macro's value")?;
        if name.value.contains(|c: char| c.is_ascii_whitespace()) {
            self.found(Finding::error(name.at, "a macro's name has no blanks in it", "here"));
            return Err(Failed);
        }
        if !name.value.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.found(Finding::new(
                Severity::Warning,
                name.at,
                format!("`${}` will not be understood", name.value),
                "only letters, digits and underscores are",
            ));
        }
        self.reader.macros.values.insert(name.value, Macro { value: value.value, at: name.at, used: false });
        Ok(())
    }

    fn include(&mut self) -> Parsed<()> {
        self.next();
        let path = self.texts("the path of a file")?;
        let relative = relative_path(&path);
        let refused = relative.as_ref().is_some_and(|finding| finding.severity == Severity::Error);
        self.reader.config.findings.extend(relative);
        if refused {
            return Err(Failed);
        }
        if self.reader.open.contains(&path.value) || self.reader.open.len() == DEEPEST {
            let message = if self.reader.open.len() == DEEPEST {
                format!("more than {DEEPEST} files include each other")
            } else {
                "files include each other in a circle".to_owned()
            };
            self.found(Finding::error(path.at, message, "once more"));
            return Err(Failed);
        }
        match (self.reader.include)(&path.value) {
            Ok(text) => {
                self.reader.open.push(path.value.clone());
                self.reader.file(&path.value, &text, path.at);
                self.reader.open.pop();
                Ok(())
            }
            Err(error) => {
                self.found(Finding::error(
                    path.at,
                    format!("cannot read {}: {error}", path.value),
                    "included here",
                ));
                Err(Failed)
            }
        }
    }

    fn local(&mut self) -> Parsed<Statement> {
        self.next();
        if self.take("inet6") {
            let prefix = if self.take("prefix") { Some(self.text("an IPv6 prefix")?) } else { None };
            return Ok(Statement::LocalInet6(prefix));
        }
        if !self.take("prefix") {
            return self.unexpected("`prefix` or `inet6`");
        }
        Ok(Statement::LocalPrefix(self.text("an IPv4 prefix, as in \"10.0.0.0/8\"")?))
    }

    fn agentx(&mut self) -> Parsed<Statement> {
        self.next();
        let (mut context, mut path) = (None, None);
        loop {
            if self.take("context") {
                context = Some(self.text("a context")?);
            } else if self.take("path") {
                path = Some(self.text("the path of a socket")?);
            } else {
                return Ok(Statement::Agentx { context, path });
            }
        }
    }

    fn owner(&mut self) -> Parsed<Owner> {
        match *self.peek() {
            Token::Number(uid) => {
                self.next();
                Ok(Owner::Uid(uid))
            }
            _ => Ok(Owner::named(&self.text("a user, user:group or :group")?.value)),
        }
    }

    /// The options of a block. The first one may be on the line of the brace and the block may end on its line;
    /// after each further one a line has to end.
    fn block<T>(&mut self, what: &str, option: fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<Spanned<T>>> {
        let open = self.sign('{')?;
        self.newlines();
        let mut options = Vec::new();
        let mut failed = false;
        for count in 0.. {
            let at = self.peek_at().1;
            match self.peek() {
                Token::Sign('}') => {
                    self.next();
                    if options.is_empty() && !failed {
                        self.found(Finding::error(
                            open.to(at),
                            format!("a {what} has at least one option"),
                            "empty",
                        ));
                    }
                    return Ok(options);
                }
                Token::End | Token::Keyword("vm" | "switch" | "include") => {
                    self.found(Finding::error(
                        open,
                        format!("the block of a {what} is not closed"),
                        "opened here",
                    ));
                    self.unclosed = true;
                    return Ok(options);
                }
                _ => {}
            }
            if let Ok(value) = option(self) {
                options.push(Spanned::new(value, at.to(self.last)));
                if !self.newlines() && count > 0 {
                    let (token, at) = self.peek_at().clone();
                    if !matches!(token, Token::End | Token::Bad) {
                        self.found(
                            Finding::error(
                                at,
                                "an option ends with its line",
                                "must be on a line of its own",
                            )
                            .help("only the first option of a block may have something after it"),
                        );
                    }
                }
            } else {
                failed = true;
                self.skip_line();
                self.newlines();
            }
        }
        Ok(options)
    }

    fn switch(&mut self) -> Parsed<Switch> {
        self.next();
        let name = self.texts("the switch's name")?;
        Ok(Switch { name, options: self.block("switch", Self::switch_option)? })
    }

    fn switch_option(&mut self) -> Parsed<SwitchOption> {
        let (token, _) = self.peek_at().clone();
        Ok(match token {
            Token::Keyword(word @ ("enable" | "disable")) => {
                self.next();
                SwitchOption::Enable(word == "enable")
            }
            Token::Keyword("group") => {
                self.next();
                SwitchOption::Group(self.texts("an interface group")?)
            }
            Token::Keyword("interface") => {
                self.next();
                SwitchOption::Interface(self.texts("a bridge(4) or veb(4), as in bridge0")?)
            }
            Token::Keyword("locked") => {
                self.next();
                self.keyword("lladdr")?;
                SwitchOption::LockedLladdr
            }
            Token::Keyword("rdomain") => {
                self.next();
                SwitchOption::Rdomain(self.number("a routing domain's number")?.value)
            }
            Token::Keyword(word @ ("up" | "down")) => {
                self.next();
                SwitchOption::Up(word == "up")
            }
            _ => return self.unexpected("an option of a switch"),
        })
    }

    fn vm(&mut self) -> Parsed<Vm> {
        self.next();
        let first = self.texts("the VM's name")?;
        // `vm PARENT instance NAME`.
        let (name, parent) = if self.take("instance") {
            (self.texts("the instance's name")?, Some(first))
        } else {
            (first, None)
        };
        Ok(Vm { name, parent, options: self.block("vm", Self::vm_option)? })
    }

    fn vm_option(&mut self) -> Parsed<VmOption> {
        let Token::Keyword(word) = *self.peek() else { return self.unexpected("an option of a VM") };
        match word {
            "local" | "interface" => return Ok(VmOption::Interface(self.interface()?)),
            "enable" | "disable" | "sev" | "seves" | "disk" | "boot" | "cdrom" | "interfaces" | "memory"
            | "owner" | "allow" => {
                self.next();
            }
            _ => return self.unexpected("an option of a VM"),
        }
        Ok(match word {
            "enable" | "disable" => VmOption::Enable(word == "enable"),
            "sev" => VmOption::Sev,
            "seves" => VmOption::SevEs,
            "disk" => {
                let path = self.texts("the path of a disk image")?;
                VmOption::Disk { path, format: if self.take("format") { Some(self.format()?) } else { None } }
            }
            "boot" if self.take("device") => VmOption::BootDevice(self.boot_device()?),
            "boot" => VmOption::Boot(self.texts("the path of a kernel or BIOS image, or `device`")?),
            "cdrom" => VmOption::Cdrom(self.texts("the path of an ISO image")?),
            "interfaces" => {
                VmOption::Interfaces(self.number("how many interfaces there are at least")?.value)
            }
            "memory" => VmOption::Memory(self.memory()?),
            "owner" => VmOption::Owner(self.owner()?),
            _ => VmOption::AllowInstance(self.allow_instance()?),
        })
    }

    fn format(&mut self) -> Parsed<Spanned<DiskFormat>> {
        let name = self.texts("raw or qcow2")?;
        let format = match name.value.to_ascii_lowercase().as_str() {
            "raw" => DiskFormat::Raw,
            "qcow2" => DiskFormat::Qcow2,
            _ => {
                let message = format!("vmd has no disk format `{}`", name.value);
                self.found(
                    Finding::error(name.at, message, "unknown")
                        .help("there are raw and qcow2; `qemu-img convert` makes them from others"),
                );
                return Err(Failed);
            }
        };
        Ok(Spanned::new(format, name.at))
    }

    fn boot_device(&mut self) -> Parsed<BootDevice> {
        let device = match self.peek() {
            Token::Keyword("cdrom") => BootDevice::Cdrom,
            Token::Keyword("disk") => BootDevice::Disk,
            Token::Keyword("net") => BootDevice::Net,
            _ => return self.unexpected("`disk`, `cdrom` or `net`"),
        };
        self.next();
        Ok(device)
    }

    fn memory(&mut self) -> Parsed<i64> {
        if let Token::Number(bytes) = *self.peek() {
            self.next();
            return Ok(bytes);
        }
        let size = self.text("a size, as in 512M")?;
        parse_size(&size.value).ok_or_else(|| {
            self.found(
                Finding::error(size.at, format!("`{}` is no size", size.value), "here")
                    .help("a number and one of K, M, G: 512M, 1.5G"),
            );
            Failed
        })
    }

    fn allow_instance(&mut self) -> Parsed<Vec<InstanceOption>> {
        self.keyword("instance")?;
        if *self.peek() != Token::Sign('{') {
            return Ok(vec![self.instance_option()?]);
        }
        self.next();
        self.instance_options().inspect_err(|_| self.skip_braces())
    }

    /// What is in the braces, and the closing one. A comma has something after it.
    fn instance_options(&mut self) -> Parsed<Vec<InstanceOption>> {
        self.newlines();
        let mut options = vec![self.instance_option()?];
        loop {
            let comma = *self.peek() == Token::Sign(',');
            if comma {
                self.next();
            }
            let separated = self.newlines() || comma;
            if *self.peek() == Token::Sign('}') && !comma {
                self.next();
                return Ok(options);
            }
            if !separated {
                return self.unexpected("a comma, the end of the line or `}`");
            }
            options.push(self.instance_option()?);
        }
    }

    fn instance_option(&mut self) -> Parsed<InstanceOption> {
        let option = match self.peek() {
            Token::Keyword("boot") => InstanceOption::Boot,
            Token::Keyword("memory") => InstanceOption::Memory,
            Token::Keyword("interface") => InstanceOption::Interface,
            Token::Keyword("disk") => InstanceOption::Disk,
            Token::Keyword("cdrom") => InstanceOption::Cdrom,
            Token::Keyword("instance") => InstanceOption::Instance,
            Token::Keyword("owner") => {
                self.next();
                return Ok(InstanceOption::Owner(self.owner()?));
            }
            _ => {
                return self.unexpected(
                    "what may be chosen: boot, memory, interface, disk, cdrom, instance or owner",
                );
            }
        };
        self.next();
        Ok(option)
    }

    fn interface(&mut self) -> Parsed<Interface> {
        let mut interface = Interface { local: self.take("local"), ..Interface::default() };
        self.keyword("interface")?;
        if matches!(self.peek(), Token::Text(_)) {
            interface.name = Some(self.text("an interface")?);
        }
        if *self.peek() == Token::Sign('{') {
            self.next();
            self.newlines();
            self.interface_options(&mut interface).inspect_err(|_| self.skip_braces())?;
            return Ok(interface);
        }
        while matches!(
            self.peek(),
            Token::Keyword("switch" | "group" | "locked" | "lladdr" | "rdomain" | "up" | "down")
        ) {
            self.interface_option(&mut interface)?;
            if *self.peek() == Token::Sign(',') {
                self.next();
            }
        }
        Ok(interface)
    }

    /// What is in the braces, and the closing one.
    fn interface_options(&mut self, interface: &mut Interface) -> Parsed<()> {
        let mut any = false;
        while *self.peek() != Token::Sign('}') || !any {
            self.interface_option(interface)?;
            self.newlines();
            any = true;
        }
        self.next();
        Ok(())
    }

    fn interface_option(&mut self, interface: &mut Interface) -> Parsed<()> {
        let Token::Keyword(word) = *self.peek() else {
            return self.unexpected("an option of an interface");
        };
        match word {
            "switch" => {
                self.next();
                interface.switch = Some(self.texts("a switch's name")?);
            }
            "group" => {
                self.next();
                interface.group = Some(self.texts("an interface group")?);
            }
            "locked" | "lladdr" => {
                self.next();
                if word == "locked" {
                    self.keyword("lladdr")?;
                    interface.locked = true;
                }
                if matches!(self.peek(), Token::Text(_)) {
                    let text = self.text("an address")?;
                    let Ok(address) = text.value.parse() else {
                        let message = format!("`{}` is no link layer address", text.value);
                        self.found(Finding::error(text.at, message, "six bytes, as in fe:e1:ba:d0:00:01"));
                        return Err(Failed);
                    };
                    interface.lladdr = Some(Spanned::new(address, text.at));
                }
            }
            "rdomain" => {
                self.next();
                interface.rdomain = Some(self.number("a routing domain's number")?.value);
            }
            "up" | "down" => {
                self.next();
                interface.up = Some(word == "up");
            }
            _ => return self.unexpected("an option of an interface"),
        }
        Ok(())
    }
}
