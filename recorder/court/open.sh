#!/bin/sh
# Check and open this package with OpenSSL 3 and the tools of every Unix alone (POSIX sh, dd, od, sed, tr, cmp).
# 只用 OpenSSL 3 和 POSIX 工具核验并打开本证据包。说明见 HOWTO.md。
#
#   sh open.sh                               check everything that needs no key        不用密钥核验
#   sh open.sh -p encryption.key.pem -o OUT  unwrap the data key, then open            用私钥解封后打开
#   sh open.sh -k data-key.hex -o OUT        open with this recording's data key       用本录像数据密钥打开
#
#   -t sm3:FINGERPRINT  accept only this signer's certificate (may be repeated)        只认可此签名证书指纹
#   -a CA.pem           the certificates must come from this authority                 证书须由此机构签发
#   -w FILE             holds the passphrase of the private key                        私钥口令文件
#   -d DIR              the package; default: where this script lies                   证据包目录
#
# It stops at the first thing that does not hold (exit code 1) and opens nothing before all of it was checked.
# What is secret goes to openssl as an argument, where other users of this machine may see it: use your own.

set -eu
LC_ALL=C
export LC_ALL
umask 077

dir=$(dirname "$0") trust='' authority='' key='' private='' passphrase='' out=opened
while getopts d:t:a:k:p:w:o: option; do
    case $option in
    d) dir=$OPTARG ;;
    t) trust="$trust ${OPTARG#sm3:}" ;;
    a) authority=$OPTARG ;;
    k) key=$OPTARG ;;
    p) private=$OPTARG ;;
    w) passphrase=$OPTARG ;;
    o) out=$OPTARG ;;
    *) exit 2 ;;
    esac
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

stop() {
    printf 'STOP 停止: %s\n' "$*" >&2
    exit 1
}
say() { printf '%s\n' "$*"; }
hex() { od -An -v -tx1 | tr -d ' \n'; }
digest() { openssl dgst -sm3 -r <"$1" | sed 's/ .*//'; }
size() { wc -c <"$1" | tr -d ' '; }
derive() { # hex of the secret, bytes wanted: the KDF of GB/T 32918.4, which OpenSSL calls X963KDF
    openssl kdf -keylen "$2" -kdfopt digest:SM3 -kdfopt "hexkey:$1" X963KDF | tr -d ':\n' | tr A-F a-f
}
plain_name() { printf '%s' "$1" | sed 's/\.[0-9a-f]\{32\}\.sealed$//'; }

# --- 1. This machine's OpenSSL: SM3 of GB/T 32905 A.1
[ "$(printf abc | openssl dgst -sm3 -r | sed 's/ .*//')" = \
    66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0 ] || stop "this openssl has no SM3: use OpenSSL 3"

# --- 2. Certificates
by() { # issuer's file, certificate. One step at a time: openssl gives its distid to the first certificate alone
    openssl verify -no_check_time -partial_chain -trusted "$1" -vfyopt distid:1234567812345678 "$2" >/dev/null 2>&1
}
extension() { # certificate, name: the extension as openssl writes it; one that is not there restricts nothing
    openssl x509 -in "$1" -noout -ext "$2" 2>/dev/null || :
}
issued() { # certificate: do the issuers in chain.pem lead from it to the authority?
    current=$1 steps=0
    while ! by "$authority" "$current"; do
        steps=$((steps + 1)) next=''
        for issuer in "$work"/issuer-*.pem; do
            if [ -f "$issuer" ] && ! cmp -s "$issuer" "$current" && by "$issuer" "$current"; then next=$issuer; fi
        done
        if [ -z "$next" ] || [ $steps -gt 8 ]; then return 1; fi
        current=$next
    done
}
if [ -f "$dir/certificates/chain.pem" ]; then
    awk -v at="$work/issuer-" '/BEGIN CERTIFICATE/ { n++ } { print > (at n ".pem") }' "$dir/certificates/chain.pem"
fi
for certificate in "$dir"/certificates/signing-*.pem; do
    [ -f "$certificate" ] || stop "no signing certificate in $dir/certificates"
    openssl x509 -in "$certificate" 2>/dev/null | cmp -s - "$certificate" || stop "changed 被改动: $certificate"
    print=$(openssl x509 -in "$certificate" -outform DER | openssl dgst -sm3 -r | sed 's/ .*//')
    case $(extension "$certificate" keyUsage) in
    *'Digital Signature'*) ;;
    *'Key Usage'*) stop "not a certificate to sign with 非签名证书: $certificate" ;;
    esac
    case $authority,$trust,$(extension "$certificate" extendedKeyUsage) in
    ,* | *,' '*,* | *'Any Extended Key Usage'*) ;; # -t names the certificate itself
    *'Extended Key Usage'*) stop "issued for another purpose (name it with -t) 证书用途不符: $certificate" ;;
    esac
    [ -z "$authority" ] || issued "$certificate" || stop "not issued by $authority 非此机构签发: $certificate"
    case " ${trust:-$print} " in
    *" $print "*) ;;
    *) stop "signer sm3:$print is not one you trust 签名者不在您认可之列" ;;
    esac
    say "signer 签名者 $(openssl x509 -in "$certificate" -noout -subject -nameopt RFC2253,utf8,-esc_msb)"
    say "    sm3:$print"
    say "    $(openssl x509 -in "$certificate" -noout -dates | tr '\n' ' ')"
done
[ -n "$trust$authority" ] ||
    say "NOTE 注意: compare these fingerprints with what the institution publishes 请与机构公布的指纹核对"

# --- 3. Signed pages: signature, then the chain from the manifest over all statements
page() { # file, regular expression of what follows the signature in it; leaves its signed bytes in $work/body
    [ -f "$1" ] || stop "missing 缺失: $1"
    tr -d '\n' <"$1" | cmp -s - "$1" || stop "changed 被改动: $1"
    split="s/^\\(.*\\),\"signature\":\"sm2-sm3:\\([A-Za-z0-9+\\/=]*\\)\"\\($2\\)\$"
    { cat "$1" && echo; } | sed -n "$split/\\1\\3/p" | tr -d '\n' >"$work/body"
    { cat "$1" && echo; } | sed -n "$split/\\2/p" | tr -d '\n' >"$work/base64"
    openssl base64 -d -A <"$work/base64" >"$work/signature" 2>/dev/null || stop "changed 被改动: $1"
    openssl base64 -A <"$work/signature" | cmp -s - "$work/base64" || stop "changed 被改动: $1"
    for certificate in "$dir"/certificates/signing-*.pem; do
        if openssl pkeyutl -verify -rawin -digest sm3 -pkeyopt distid:1234567812345678 -certin \
            -inkey "$certificate" -in "$work/body" -sigfile "$work/signature" >/dev/null 2>&1; then
            return 0
        fi
    done
    stop "the signature does not hold 签名不成立: $1"
}
member() { sed -n "s/.*$1.*/\\1/p"; } # regular expression with one group; of one line

page "$dir/manifest.json" ',"template_sm3":[^,{}]*,"type":"shuanglu\.capture-manifest\.v1","written_at":"[^"]*"}'
{ cat "$work/body" && echo; } >"$work/bodies"
recording=$(member ',"recording":"\([0-9a-f-]*\)","sealed":{' <"$work/bodies")
key_id=$(member ',"key_id":"\([0-9a-f]*\)","parts":\[' <"$work/bodies")
[ -n "$recording" ] && [ -n "$key_id" ] || stop "manifest.json names no recording"
say "recording 录像 $recording"
previous=$(digest "$dir/manifest.json")
number=1
while :; do
    statement=$dir/statements/$(printf %06d "$number").json
    [ -f "$statement" ] || break
    page "$statement" ',"type":"shuanglu\.statement\.v1"}'
    { cat "$work/body" && echo; } >"$work/line"
    named=$(member ",\"number\":$number,\"previous\":\"sm3:\\([0-9a-f]*\\)\",\"recording\":\"$recording\",\"sealed\":" <"$work/line")
    [ "$named" = "$previous" ] || stop "does not follow the page before it 与前页不衔接: $statement"
    kind=$(member ',"kind":"\([a-z_]*\)","number":'"$number," <"$work/line")
    say "statement 声明 $number: $kind, $(sed -n 's/^{"at":"\([^"]*\)".*/\1/p' <"$work/line")"
    cat "$work/line" >>"$work/bodies"
    previous=$(digest "$statement")
    number=$((number + 1))
done
for statement in "$dir"/statements/*.json; do
    [ -f "$statement" ] || continue
    [ "$(basename "$statement" .json | sed 's/^0*//')" -lt "$number" ] || stop "a statement before it is missing 缺页: $statement"
done
say "pages 签名页: $number, all signatures and the chain hold 签名与链均成立"

# --- 4. The package's own list
page "$dir/package.json" ',"statement":[0-9]*,"type":"shuanglu\.package\.v1"}'
{ cat "$work/body" && echo; } | tr '{' '\n' |
    sed -n 's/^"bytes":[0-9]*,"name":"\([^"\\]*\)","sm3":"sm3:\([0-9a-f]*\)"}.*/\2 \1/p' >"$work/list"
[ -s "$work/list" ] || stop "package.json lists no files"
grep -q "\"recording\":\"$recording\"" "$work/body" || stop "package.json is of another recording 属于另一录像"
while read -r expected name; do
    [ -f "$dir/$name" ] || stop "missing 缺失: $name"
    [ "$(digest "$dir/$name")" = "$expected" ] || stop "changed 被改动: $name"
done <"$work/list"
(cd "$dir" && find . ! -type d) | sed 's/^\.\///' >"$work/there"
while IFS= read -r name; do
    [ "$name" = package.json ] || sed 's/^[0-9a-f]* //' <"$work/list" | grep -qxF -e "$name" ||
        stop "package.json does not list it 清单外文件: $name"
done <"$work/there"
say "files 文件: $(sed -n '$=' "$work/list"), all as listed and signed 与签名清单一致"

# --- 5. Plain and sealed files against what the recording's own pages say of them
summary() { # name on disk: bytes, file id, plain bytes, SM3 of the plain text, SM3
    pattern=$(printf '%s' "$1" | sed 's/\./\\./g')
    sed -n "s/.*{\"bytes\":\\([0-9]*\\),\"chunks\":[0-9]*,\"file_id\":\"\\([0-9a-f]*\\)\",\"finished\":true,\"head\":\"sm3:[0-9a-f]*\",\"kind\":\"[a-z]*\",\"media_type\":\"[^\"]*\",\"name\":\"$pattern\",\"plain_bytes\":\\([0-9]*\\),\"plain_sm3\":\"sm3:\\([0-9a-f]*\\)\",\"sm3\":\"sm3:\\([0-9a-f]*\\)\".*/\\1 \\2 \\3 \\4 \\5/p" "$work/bodies" | sed -n 1p
}
for file in "$dir"/media/* "$dir"/private/*; do
    [ -f "$file" ] || continue
    grep -q "\"plain_sm3\":\"sm3:$(digest "$file")\"" "$work/bodies" || stop "not the signed plain text 非所签明文: $file"
    say "plain 明文 $(basename "$file"): as signed 与签名一致"
done
for file in "$dir"/sealed/*.sealed; do
    [ -f "$file" ] || continue
    # shellcheck disable=SC2046
    set -- $(summary "$(basename "$file")")
    [ $# -eq 5 ] || stop "no signed page names it 无签名页提及: $file"
    [ "$(size "$file")" = "$1" ] && [ "$(digest "$file")" = "$5" ] || stop "not the signed file 非所签文件: $file"
    say "sealed 密文 $(basename "$file"): as signed 与签名一致"
done

# --- 6. The data key
if [ -z "$key$private" ]; then
    say "OK 核验通过. To open the sealed files give -p or -k 如需打开密文请给出 -p 或 -k"
    exit 0
fi
fits() { # hex of a data key: is it this recording's? Its suite (docs section 2.3) goes into $suite
    for suite in 1 2 3; do
        label='shuanglu data key id v1'
        [ "$suite" = 1 ] || label="$label suite $suite"
        if [ "$(derive "$(printf %s "$label" | hex)$1" 16)" = "$key_id" ]; then return 0; fi
    done
    return 1
}
if [ -n "$key" ]; then
    secret=$(tr -d ' \r\n' <"$key" | tr A-F a-f)
    fits "$secret" || stop "$key is not the data key of this recording 非本录像数据密钥"
else
    page "$dir/keys/keys.json" \
        '\(,"succession":\[.*\]\)\{0,1\}\(,"suite":[0-9]\)\{0,1\},"type":"shuanglu\.keys\.v1","wraps":.*,"written_at":"[^"]*"}'
    grep -q "\"key_id\":\"$key_id\",\"recording\":\"$recording\"," "$work/body" || stop "keys.json is of another recording"
    secret=''
    for wrap in $(tr ',' '\n' <"$work/body" | sed -n 's/^"ciphertext":"\([A-Za-z0-9+\/=]*\)".*/\1/p'); do
        printf %s "$wrap" | openssl base64 -d -A >"$work/wrap.der"
        set -- -decrypt -inkey "$private" -in "$work/wrap.der" -out "$work/secret"
        [ -z "$passphrase" ] || set -- "$@" -passin "file:$passphrase"
        if openssl pkeyutl "$@" 2>/dev/null; then
            secret=$(hex <"$work/secret")
            rm "$work/secret"
            if fits "$secret"; then break; fi
            secret=''
        fi
    done
    [ -n "$secret" ] || stop "no wrap in keys.json opens with $private 此私钥不能解封数据密钥"
fi
case $suite in # bytes of the cipher's keys, cipher, hex digits of its key
1) cipher_bytes=16 cipher=sm4-ctr digits=32 ;;
2) cipher_bytes=48 cipher=sm4-ctr digits=32 ;;
3) cipher_bytes=32 cipher=aes-256-ctr digits=64 ;;
esac
say "data key 数据密钥: fits 相符, suite $suite"

# --- 7. Opening: records one after another, docs section 2; then the SM3 of what came out
take() { dd bs="$1" count=1 <&3 2>/dev/null; } # exactly so many bytes, from where the last one ended
open_sealed() { # sealed file, its id, target
    exec 3<"$1"
    [ "$(take 8 | hex)" = 89534c530d0a1a0a ] || stop "no sealed file: $1"
    number=0 ended=''
    while [ -z "$ended" ]; do
        # shellcheck disable=SC2046
        set -- "$1" "$2" "$3" $(take 12 | od -An -v -tu1)
        [ $# -eq 15 ] || stop "cut off 被截断: $1"
        type=$(($4 * 256 + $5)) flags=$(($6 * 256 + $7)) length=$((((${12} * 256 + ${13}) * 256 + ${14}) * 256 + ${15}))
        [ $((((${8} * 256 + $9) * 256 + ${10}) * 256 + ${11})) -eq $number ] || stop "record $number is not in its place: $1"
        set -- "$1" "$2" "$3"
        case $type in
        1)
            take $length >"$work/header"
            head=$(cat "$work/header")
            case $head in
            '{"file_id":"'"$2"'","key_id":"'"$key_id"'",'*'"suite":'"$suite"',"version":1}') ;;
            *) stop "its header names another file, key, suite or version: $1" ;;
            esac
            dd bs=$((8 + 12 + length + 32)) count=1 <"$1" 2>/dev/null | openssl dgst -sm3 -binary >"$work/header.digest"
            both=$(derive "$secret$2$(printf %s "shuanglu sealed file v1 suite $suite" | hex)" $((cipher_bytes + 32)))
            file_key=$(printf "%.${digits}s" "$both")
            commitment_key=$(printf %s "$both" | dd bs=1 skip=$((2 * cipher_bytes)) 2>/dev/null)
            ;;
        2)
            [ "$(take $length | hex)" = "$(openssl dgst -sm3 -mac hmac -macopt "hexkey:$commitment_key" -binary <"$work/header.digest" | hex)" ] ||
                stop "the key commitment does not hold 密钥承诺不成立: $1"
            ;;
        3)
            take $((length - 16)) | openssl enc -d "-$cipher" -K "$file_key" -iv "$(printf %022x00 $number)00000002" >>"$3"
            take 16 >/dev/null
            ;;
        5)
            take $length >/dev/null
            ended=1
            ;;
        *)
            [ $type -eq 4 ] || [ $((flags % 2)) -eq 0 ] || stop "record of unknown critical type $type: $1"
            [ $length -eq 0 ] || take $length >/dev/null
            ;;
        esac
        take 32 >/dev/null
        number=$((number + 1))
    done
    exec 3<&-
}
mkdir -p "$out"
for file in "$dir"/sealed/*.sealed; do
    [ -f "$file" ] || stop "there is no sealed file in $dir/sealed"
    name=$(plain_name "$(basename "$file")")
    [ ! -e "$out/$name" ] || stop "exists already 已存在: $out/$name"
    # shellcheck disable=SC2046
    set -- $(summary "$(basename "$file")")
    rm -f "$work/plain"
    : >"$work/plain"
    open_sealed "$file" "$2" "$work/plain"
    [ "$(size "$work/plain")" = "$3" ] && [ "$(digest "$work/plain")" = "$4" ] ||
        stop "what came out is not the signed plain text 解出的不是所签明文: $file"
    if [ -f "$dir/media/$name" ]; then
        cmp -s "$work/plain" "$dir/media/$name" || stop "is not the file in media/ 与 media/ 中不同: $name"
    fi
    mv "$work/plain" "$out/$name"
    say "opened 已打开 $out/$name: SM3 $4, as signed 与签名一致"
done
say "OK 全部核验通过"
